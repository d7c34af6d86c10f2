"""Is a complex task's change of the heads a combination of basic tasks' changes? Beside two nulls.

    python -m studies.research.heads.combination                     # all-MiniLM-L6-v2 with a head
    python -m studies.research.heads.combination --model smollm2     # SmolLM2-135M, completions

Basic: is this sentence of a review positive (Rotten Tomatoes)? Does this package belong to games or science (Debian,
see `oracle/sections.py`)? Complex: both of a sentence and a description in one text. Unrelated: which of two
numbers is larger, and whether two words are the same. All are trained alike from one base model.
"""

from __future__ import annotations

import random
import subprocess
from typing import Any

import torch

from autolr.data import sources
from autolr.insight import measures
from autolr.insight.task_mixture import Change, combine, mixture
from autolr.pack.slots import SlotConfig
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data
from autolr.schema.training import Training
from studies.benchmarks.common import document
from studies.research.common import completions, debian, labelled, look, model_for, task_of, train

Examples = list[tuple[str, str]]
BASIC, UNRELATED = ("sentiment", "section"), ("larger", "same")
NAMES = {
    "sentiment": ("negative", "positive"),
    "section": ("games", "science"),
    "both": ("negative games", "negative science", "positive games", "positive science"),
    "larger": ("first", "second"),
    "same": ("no", "yes"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "minilm": {
        "steps": 120,
        "batch": 16,
        "samples": 192,
        "length": 96,
        "candidate": Candidate(lr_v=4e-3, ratio=4, rank=8),
    },
    "smollm2": {
        "steps": 40,
        "batch": 4,
        "samples": 48,
        "length": 96,
        "candidate": Candidate(lr_v=2e-3, ratio=4, rank=8),
    },
}


def tasks(count: int, seed: int = 0) -> dict[str, Examples]:
    """Return texts and what is to be said of each."""
    rng = random.Random(seed)
    reviews = sources.load(Data(source="demo:rotten-tomatoes"))
    order = rng.sample(range(len(reviews)), 2 * count)
    sentiments = [(reviews.texts[row], NAMES["sentiment"][int(reviews.labels[row])]) for row in order]
    shown = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    packages = [one for one in debian.examples(shown.splitlines()) if one[1] in NAMES["section"]]
    rng.shuffle(packages)
    # Of the packages there are fewer; the complex task pairs them with other sentences than the basic one has.
    pairs = zip(sentiments[count:], (rng.choice(packages) for _ in range(count)), strict=True)
    words = sorted({word for text, _ in sentiments for word in text.split() if word.isalpha()})
    larger, same = [], []
    for _ in range(count):
        one, other = rng.sample(range(10, 1000), 2)
        larger.append((f"{one} or {other}", NAMES["larger"][int(other > one)]))
        word, second = rng.sample(words, 2)
        alike = rng.random() < 0.5
        same.append((f"{word} and {word if alike else second}", NAMES["same"][int(alike)]))
    return {
        "sentiment": sentiments[:count],
        "section": packages[:count],
        "both": [(f"{a[0]} {b[0]}", f"{a[1]} {b[1]}") for a, b in pairs],
        "larger": larger,
        "same": same,
    }


def changes(model: str, wanted: dict[str, Any], result: document.Result) -> dict[str, Change]:
    """Train each task and return its change on samples that were not trained on."""
    steps, batch, candidate = wanted["steps"], wanted["batch"], wanted["candidate"]
    count = steps * batch
    bases: dict[int, Any] = {}
    found = {}
    for name, examples in tasks(count + wanted["samples"]).items():
        classes = list(NAMES[name])
        outputs = len(classes) if model == "minilm" else 0
        if outputs not in bases:
            source = "demo:all-MiniLM-L6-v2" if outputs else "demo:smollm2"
            bases[outputs] = model_for(source, classes, "classification" if outputs else "sft")
        base = bases[outputs]
        texts, said = [text for text, _ in examples], [end for _, end in examples]
        if outputs:
            data = labelled(texts, [classes.index(end) for end in said], classes, base, wanted["length"])
            task, lr_head = task_of("classification", classes, None), 2 / 384
        else:
            data = completions(
                [f"{text}\nAnswer:" for text in texts], [f" {end}" for end in said], base, wanted["length"]
            )
            task, lr_head = task_of("sft", (), None), 0.0
        seen = min(count, len(data) - wanted["samples"])
        learned, held = data.take(range(seen)), data.take(range(len(data) - wanted["samples"], len(data)))
        config = SlotConfig(candidate.rates(lr_head), candidate.rank, 0, steps)
        kept = train(base, Training(batch_size=batch, precision="fp32"), task, learned, [config], (steps,))[0]
        before = look(base, task, held, None, config)
        found[name] = Change(before, look(base, task, held, kept[0][steps], config))
        loss = {"before": float(before.losses.mean()), "after": float(found[name].after.losses.mean())}
        result.row("task", task=name, examples=seen, **loss, change=found[name].of().round(8).tolist())
        result.figure(f"{name} loss after", loss["after"])
    return found


def tell(found: dict[str, Change], result: document.Result) -> None:
    """Write the complex task as combinations, and see how the tasks lie."""
    for kind in ("absolute", "signed"):
        one = combine(found["both"], {n: found[n] for n in BASIC}, [found[n] for n in UNRELATED], kind)
        result.row(
            "combination",
            of=kind,
            r2=one.r2.model_dump(),
            r2_share=one.r2_share,
            null_heads=one.null_heads.model_dump(),
            null_unrelated=one.null_unrelated,
            p=one.p,
            weights=[
                {"task": w.task, "ordinary": w.ordinary.model_dump(), "share": w.share.model_dump()}
                for w in one.weights
            ],
        )
        for name, value in (
            ("R²", one.r2.mean),
            ("R² with heads permuted", one.null_heads.mean),
            ("R² with heads permuted, 97.5 %", one.null_heads.high),
            ("R² of unrelated tasks", max(one.null_unrelated)),
            ("p", one.p),
        ):
            result.figure(f"{kind} {name}", value)
        shares = {weight.task: weight.share.mean for weight in one.weights}
        if sum(shares.values()) > 0:
            result.row("mixture", of=kind, advice=mixture(shares, 1000))
        raw = [change.after.of(kind) for change in found.values()]
        moved = [change.of(kind) for change in found.values()]
        for name, patterns in (("patterns", raw), ("changes", moved)):
            result.row(
                "distances",
                of=f"{kind} {name}",
                tasks=list(found),
                apart=measures.distances(patterns).round(4).tolist(),
            )


def main() -> None:
    """Train, combine, tell, write."""
    options = document.parser(__doc__)
    options.add_argument("--model", choices=SETTINGS, default="minilm")
    given = options.parse_args()
    wanted = {**SETTINGS[given.model], **({"steps": 2, "batch": 4, "samples": 8} if given.quick else {})}
    settings = {**wanted, "candidate": wanted["candidate"].model_dump()}
    result = document.Result(f"heads_combination_{given.model}", settings=settings)
    tell(changes(given.model, wanted, result), result)
    document.deliver(result, torch.device("cpu"), keep=not given.quick, out=given.out)


if __name__ == "__main__":
    main()
