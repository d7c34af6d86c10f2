r"""Everything a real GPU is asked, in one call: is AutoLR right on it, and how fast.

    python -m studies.benchmarks.gpu --out FOLDER                  # 9 minutes at most
    python -m studies.benchmarks.gpu --out FOLDER --only roberta   # one part, or several: --only roberta,llama_1b
    python -m studies.benchmarks.gpu --out FOLDER --search         # whole searches and full runs
    python -m studies.benchmarks.gpu --out FOLDER --simulated      # the same on a simulated GPU, in tiny shapes

Each result is written at once as a line of `FOLDER/results.jsonl`. A part that fails is a line, and the next part
begins. What does not fit `--budget` is left out and named. The last line on standard output is the document of
`studies.benchmarks.common.document`, which is written to FOLDER as well.

The machine needs Python 3.11 or newer, this checkout, torch with CUDA, transformers, peft, accelerate, safetensors,
psutil, numpy, PyYAML and pydantic. Models have random weights and data are random tokens, so nothing is downloaded.
`--search` needs all that AutoLR requires.

A machine without a package index gets the missing packages as wheels, here for Python 3.12 on x86-64. These commands
run in this checkout, on a machine that has an index. The folder `wheels` has 3 MB, with those for `--search` 19 MB.
Keep checkout and wheels below the limit on what may be carried along, often 64 MiB:

    echo /wheels/ >> .git/info/exclude
    GET="python3 -m pip download -d wheels --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64"
    $GET pydantic
    $GET --no-deps optuna alembic colorlog sqlalchemy mako greenlet datasets dill multiprocess plotly  # for --search
    $GET --no-deps bitsandbytes  # 43 MB, for the part nf4 alone

And these on the GPU machine, in the checkout with its `wheels`:

    python3 -m pip install -q --no-index --find-links wheels --no-deps --no-compile --target ../site wheels/*.whl
    PYTHONPATH=../site python3 -m studies.benchmarks.gpu --out FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
BUDGET = 540.0


def options() -> argparse.ArgumentParser:
    """Return the options of the script."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    found.add_argument("--budget", type=float, default=BUDGET, help="seconds the call may take")
    found.add_argument("--only", default="", help="names of parts, with commas between them")
    found.add_argument("--search", action="store_true", help="whole searches and full runs")
    found.add_argument("--simulated", action="store_true", help="on a simulated GPU, in tiny shapes")
    return found


def machine(stack: contextlib.ExitStack, *, simulated: bool, devices: int) -> Any:
    """Prepare torch before anything uses it; return the simulated GPU, or None for a real one."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    import torch

    if simulated:
        from tests.simgpu import Gpu

        torch.set_num_threads(1)
        return stack.enter_context(Gpu(devices=devices))
    return None


def parts(run: Any) -> list[Any]:
    """Return the parts of a call, the most important ones first."""
    from studies.benchmarks.common.shapes import LLAMA_1B, LLAMA_8B, ROBERTA, TINIEST_ROBERTA, TINY_LLAMA
    from studies.benchmarks.gpu import checks, rates
    from studies.benchmarks.gpu.parts import Part
    from studies.benchmarks.gpu.rates import Case

    if run.simulated:
        few: dict[str, Any] = {"slots": (1, 2), "seconds": 60.0, "rounds": 1, "count": 64, "block": 1}
        roberta = Case("roberta", TINIEST_ROBERTA, 2, 8, **few)
        llama_1b = Case("llama_1b", TINY_LLAMA, 1, 8, **few)
        llama_8b = Case("llama_8b", TINY_LLAMA, 1, 8, **{**few, "slots": (2,)})
        language = Case("language_1b", TINY_LLAMA, 2, 16, learned=1.0, **few)
        long = Case("language_8b", TINY_LLAMA, 2, 32, learned=0.5, **few)
        most = 2
    else:
        many = (1, 4, 8, 16, 32)
        roberta = Case("roberta", ROBERTA, 32, None, many, 70)
        llama_1b = Case("llama_1b", LLAMA_1B, 4, 128, many, 80)
        llama_8b = Case("llama_8b", LLAMA_8B, 1, 128, many, 110)
        language = Case("language_1b", LLAMA_1B, 4, 128, (1, 4, 8, 16), 50, learned=1.0)
        long = Case("language_8b", LLAMA_8B, 8, 512, (1, 2), 40, learned=0.5, count=512, rounds=1)
        most = 64

    def part(name: str, least: float, work: Callable[..., None], *given: Any) -> Part:
        return Part(name, 0 if run.simulated else least, lambda run: work(run, *given))

    return [
        part("ceilings", 5, rates.ceilings),
        part("equality", 20, checks.equality),
        part("waits", 5, checks.waits),
        part("roberta", 40, rates.measure, roberta),
        part("llama_1b", 40, rates.measure, llama_1b),
        part("llama_8b", 60, rates.measure, llama_8b),
        part("logits", 15, rates.logits, language),
        part("shortage", 15, checks.shortage),
        part("capacity", 30, rates.chosen, roberta, most),
        part("language_1b", 30, rates.measure, language),
        part("language_8b", 30, rates.with_room, long, long.slots),
        part("two_devices", 15, checks.two_devices),
        part("nf4", 10, checks.few_bits),
        part("failed_recording", 10, checks.failed_recording),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Do the parts that are asked for, and leave the document."""
    parser = options()
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        gpu = machine(stack, simulated=given.simulated, devices=1 if given.search else 2)
        import torch

        from studies.benchmarks.common import document
        from studies.benchmarks.gpu.parts import DEVICE, GIB, Run

        if not torch.cuda.is_available():
            parser.error("torch sees no GPU here. Give --simulated, or use a machine that has one.")

        wanted = [word for word in given.only.split(",") if word]
        name = "_".join(["gpu", *(["search"] if given.search else []), *wanted])
        run = Run(name, given.out, given.budget, STARTED, gpu)
        plan = searches(run) if given.search else parts(run)
        known = [part.name for part in plan]
        for word in wanted:
            if word not in known:
                parser.error(f"--only {word}: no such part. Give one or more of: {', '.join(known)}.")
        plan = [part for part in plan if not wanted or part.name in wanted]
        free, total = torch.cuda.mem_get_info(DEVICE)
        about = {"device": torch.cuda.get_device_name(DEVICE), "gpus": torch.cuda.device_count()}
        run.row(
            "machine", **about, free_gib=round(free / GIB, 1), total_gib=round(total / GIB, 1), cores=os.cpu_count()
        )
        gc.freeze()  # what is imported by now need not be looked at between the parts
        stack.callback(gc.unfreeze)
        run.do(plan)
        run.row("done", seconds=round(run.seconds))
        run.result.settings = {
            "budget": given.budget,
            "simulated": given.simulated,
            "parts": [part.name for part in plan],
            "seconds": round(run.seconds),
        }
        document.deliver(run.result, DEVICE, keep=False, out=given.out)


def searches(run: Any) -> list[Any]:
    """Return the parts of a call that searches."""
    from studies.benchmarks.gpu.whole_searches import parts

    found: list[Any] = parts(run)
    return found


if __name__ == "__main__":
    main()
