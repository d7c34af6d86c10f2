"""Data selection by the pattern: against chance and against embeddings, at the same budget.

    python -m studies.research.heads.data_selection [--seeds 5]

The pool holds sentences of Rotten Tomatoes and descriptions of Debian packages (games or science: another question
with two answers, see `oracle/sections.py`), half and half. The target task is Rotten Tomatoes, of which 64
sentences are known. Each way takes 256 samples of the pool; the embedded model is trained on them for three epochs,
and judged on *test*. What differs between seeds: pool, known sentences, adapter and data order.
"""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import torch
from scipy import stats

from autolr.data.batches import TokenSet, by_length
from autolr.insight.data_selection import nearest
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from studies.benchmarks.common import document
from studies.research.common import Setting, debian, labelled, look, setting_of, some, train

KNOWN, POOL, TAKEN, EPOCHS = 64, 800, 256, 3
WAYS = ("pattern", "signed pattern", "embedding", "chance", "sentences alone")
CANDIDATE = Candidate(lr_v=4e-3, ratio=4.0, rank=8)


def descriptions(setting: Setting, count: int) -> TokenSet:
    """Return package descriptions of two sections, as many of each."""
    import subprocess

    shown = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    rows = [(text, s) for text, s in debian.examples(shown.splitlines()) if s in ("games", "science")][:count]
    labels = [int(section == "science") for _, section in rows]
    return labelled([text for text, _ in rows], labels, ["games", "science"], setting.backbone, 128)


@torch.no_grad()
def embeddings(setting: Setting, data: TokenSet) -> np.ndarray:
    """Return what the model is made for: the mean of its last hidden states, [samples, hidden]."""
    body = setting.backbone.model.base_model
    parts, rows = [], []
    for picked in by_length(data.lengths(), 32):
        batch = data.collate(picked)
        hidden = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(2)
        parts.append(((hidden * mask).sum(1) / mask.sum(1)).double().numpy())
        rows += picked
    return np.concatenate(parts)[np.argsort(rows)]


def main() -> None:
    """Look, choose, train, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    seeds = 1 if given.quick else given.seeds
    half, taken, known = (40, 32, 16) if given.quick else (POOL // 2 + 200, TAKEN, KNOWN)
    setting = setting_of([])
    base, task, training = setting.backbone, setting.task, setting.study.training
    sentences, packages = some(setting.data.train, half + known), descriptions(setting, half)
    both = TokenSet(sentences.ids + packages.ids, sentences.labels + packages.labels, sentences.pad_id)  # type: ignore[operator]
    rates = CANDIDATE.rates(setting.space.lr_head)
    found = look(base, task, both, None, SlotConfig(rates, 8, 0, 1))
    meaning = embeddings(setting, both)
    features = {"pattern": found.absolutes, "signed pattern": found.activations, "embedding": meaning}
    judge = some(setting.data.test, 40 if given.quick else 400)
    steps = EPOCHS * taken // training.batch_size
    result = document.Result(
        "heads_choice",
        settings={
            "known": known,
            "pool": 2 * min(half, POOL // 2),
            "taken": taken,
            "steps": steps,
            "seeds": seeds,
            "judged": len(judge),
        },
    )
    losses: dict[str, list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 5])
        order = rng.permutation(len(sentences))
        target, own = order[:known], order[known : known + min(half, POOL // 2)]
        others = len(sentences) + rng.permutation(len(packages))[: len(own)]
        pool = rng.permutation(np.concatenate([own, others]))
        ways = {name: pool[nearest(each[pool], each[target], taken)] for name, each in features.items()}
        ways["chance"] = rng.permutation(pool)[:taken]
        ways["sentences alone"] = rng.permutation(own)[:taken]
        for name in WAYS:
            rows = [int(row) for row in ways[name]]
            config = SlotConfig(rates, CANDIDATE.rank, seed, steps)
            loss = train(base, training, task, both.take(rows), [config], (), judge)[2][0]
            share = float(np.mean([row < len(sentences) for row in rows]))
            balance = float(np.mean([both.labels[row] for row in rows]))
            result.row("run", way=name, seed=seed, loss=loss, share=share, positive=balance)
            losses.setdefault(name, []).append(loss)
    for name in WAYS:
        runs = [row for row in result.rows if row.get("way") == name]
        result.figure(f"{name} loss", statistics.mean(losses[name]))
        result.figure(f"{name} share of the target", statistics.mean(row["share"] for row in runs))
    for one, other in itertools.combinations(WAYS, 2):
        gains = [b - a for a, b in zip(losses[one], losses[other], strict=True)]
        if len(gains) > 1:
            error = statistics.stdev(gains) / len(gains) ** 0.5
            half_width = float(stats.t.ppf(0.95, len(gains) - 1)) * error
            row = {"gain": round(statistics.mean(gains), 4), "half_interval": round(half_width, 4)}
            result.row("difference", better=one, worse=other, **row)
            result.figure(f"gain of {one} over {other}", statistics.mean(gains))
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
