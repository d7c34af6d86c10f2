"""What looking at attention heads costs: time, and memory beside that of a training step.

    python -m studies.benchmarks.speed.heads_cost

The embedded model and data. Time: activations of 512 samples, and their attention entropies, medians of three rounds.
Memory: bytes of tensors at the highest, counted, with batches of the same 16 longest samples: a training step of an
adapter on W_q and W_v (rank 8), the pass of the analysis, and that pass without what watches the heads.
"""

from __future__ import annotations

import statistics
import time

import torch

from autolr.data.batches import TokenSet
from autolr.finetune.param_groups import grouped
from autolr.insight import activations, attention_probs, peak_memory
from autolr.model import adapters
from autolr.model.sparse_logits import forward
from autolr.schema.study import Study
from autolr.tuner.setting import Setting, choose_device, read_setting
from studies import SENTIMENT
from studies.benchmarks.common.document import Result, deliver, parser

SAMPLES, BATCH, RANK, ROUNDS = 512, 16, 8, 3


def training_peak(setting: Setting, widest: TokenSet, device: torch.device) -> int:
    """Return the peak of a training step, the second: it has the optimizer's moments."""
    base, task = setting.backbone, setting.task

    def work() -> None:
        model = adapters.peft_model(base, "qv", RANK, 16.0, 0)
        optimizer = torch.optim.AdamW(grouped(model, {"q": 1e-4, "v": 1e-4, "head": 1e-4}))
        batch = {key: value.to(device) for key, value in widest.collate(range(len(widest))).items()}
        for _ in range(2):
            optimizer.zero_grad()
            task.batch_losses(forward(model, batch), batch["labels"])[0].backward()
            optimizer.step()
        base.model = model.unload().eval().requires_grad_(False)

    return peak_memory.peak(work, device)


def bare_peak(setting: Setting, widest: TokenSet, device: torch.device) -> int:
    """Return the peak of the same pass back to where the analysis goes back to, with nothing watched."""
    base, task = setting.backbone, setting.task
    first = base.model.get_submodule(activations.output_sites(base)[0].module)

    def work() -> None:
        handle = first.register_forward_pre_hook(lambda _, args: (args[0].detach().requires_grad_(), *args[1:]))
        batch = {key: value.to(device) for key, value in widest.collate(range(len(widest))).items()}
        task.losses(forward(base.model, batch), batch["labels"]).sum().backward()
        handle.remove()

    return peak_memory.peak(work, device)


def main() -> None:
    """Measure, tell, write."""
    given = parser(__doc__).parse_args()
    device = choose_device(given.device)
    setting = read_setting(Study.load(SENTIMENT, ["training.precision=fp32"]), device)
    base, task, train = setting.backbone, setting.task, setting.data.train
    count, rounds = (32, 1) if given.quick else (SAMPLES, ROUNDS)
    samples = train.take(range(count))
    result = Result("heads", settings={"samples": count, "batch": BATCH, "rank": RANK, "rounds": rounds})
    seconds: dict[str, list[float]] = {"pattern": [], "entropy": []}
    for number in range(rounds):
        start = time.perf_counter()
        activations.measure(base, task, samples)
        middle = time.perf_counter()
        attention_probs.entropies(base, samples)
        taken = {"pattern": middle - start, "entropy": time.perf_counter() - middle}
        result.row("time", round=number, **{name: round(value, 3) for name, value in taken.items()})
        for name, value in taken.items():
            seconds[name].append(value)
    for name, values in seconds.items():
        result.figure(f"{name} of {count} samples, seconds", statistics.median(values))
    lengths = train.lengths()
    widest = train.take(sorted(range(len(train)), key=lengths.__getitem__)[-BATCH:])
    found = {
        "training step": training_peak(setting, widest, device),
        "pattern": peak_memory.peak(lambda: activations.measure(base, task, widest, batch_size=BATCH), device),
        "pass without watching": bare_peak(setting, widest, device),
        "entropy": peak_memory.peak(lambda: attention_probs.entropies(base, widest, batch_size=BATCH), device),
    }
    for name, value in found.items():
        result.row("memory", of=name, bytes=value)
        result.figure(f"peak of {name}, MiB", value / 2**20)
    extra = found["pattern"] - found["pass without watching"]
    result.figure("extra memory by a training step's", extra / found["training step"])
    result.figure("pattern's memory by a training step's", found["pattern"] / found["training step"])
    deliver(result, device, keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
