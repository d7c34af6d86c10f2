"""What is written for another tool, and what that tool cannot express."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolr import display
from autolr.data.splits import split
from autolr.model.meta_model import config_of
from autolr.problem import load_examples
from autolr.schema import yaml_io
from autolr.schema.recipe import Recipe
from autolr.tuner.propose.baselines import Baseline

# Evaluations on *validation*, and checkpoints, of a run.
EVALUATIONS = 8
# The files of the recipe's own splits, called as `datasets` calls splits; test is given to nobody.
TRAIN, SELECT = "data/train.jsonl", "data/validation.jsonl"


@dataclass(frozen=True)
class Export:
    """A recipe in another tool's words.

    Attributes:
        tool: its name.
        files: text of each file, by its path below the folder.
        command: what trains the recipe, given in the folder.
        lost: what the tool cannot express, or does otherwise.
    """

    tool: str
    files: dict[str, str]
    command: str
    lost: tuple[str, ...] = field(default=())

    def note(self, recipe: Recipe) -> str:
        """Return the comment above each file: its source, its use, and what it cannot express."""
        lines = [
            f"Recipe {recipe.name} of AutoLR for {self.tool}: {recipe.candidate.describe()}",
            f"Rates: {recipe.rates.describe()}",
            f"Use it in this folder: {self.command}",
        ]
        if self.lost:
            lines += [f"What {self.tool} cannot express, or does otherwise:", *(f"- {one}" for one in self.lost)]
        else:
            lines.append(f"{self.tool} does all of it.")
        return "\n".join(lines)

    def write(self, folder: Path, recipe: Recipe) -> list[Path]:
        """Write the files, the note above each that can hold comments and in README.md, and the recipe.

        Returns:
            The files written, the first of which is the one to begin with.
        """
        note = self.note(recipe)
        comment = "".join(
            f"# {line}\n" for part in note.splitlines() for line in textwrap.wrap(part, 110, subsequent_indent="  ")
        )
        written = []
        for name, text in self.files.items():
            text = comment + text if Path(name).suffix in (".yaml", ".py") else text
            yaml_io.write_text(folder / name, text, durable=False)
            written.append(folder / name)
        yaml_io.write_text(folder / "README.md", f"# {self.tool}\n\n{_markdown(note)}\n", durable=False)
        here = Path(recipe.model).expanduser()
        found = recipe.model_copy(update={"model": str(here.resolve())}) if here.exists() else recipe
        found.save(folder / "recipe.yaml")
        return [*written, folder / "README.md", folder / "recipe.yaml"]


def one_rate(recipe: Recipe) -> float:
    """Return the rate for a tool that has one for all: W_v's, which decides, or that of what is trained."""
    trained = recipe.rates.trained()
    return trained.get("v") or next(iter(trained.values()))


def lost_rates(recipe: Recipe, *, loraplus_lr_ratio: bool = False) -> list[str]:
    """Return what one rate for all roles loses, and what the search has measured of that.

    Args:
        recipe: with its rates.
        loraplus_lr_ratio: whether the tool knows LoRA+'s ratio ρ.
    """
    trained = recipe.rates.trained()
    lr = one_rate(recipe)
    others = {role: rate for role, rate in trained.items() if rate != lr}
    lines = []
    if others:
        rates = ", ".join(f"{role} at {rate:.3g}" for role, rate in others.items())
        lines.append(f"one rate for all, {lr:.3g}: the recipe has {rates}" + _measured(recipe))
    if recipe.rates.b and not loraplus_lr_ratio:
        lines.append(
            f"one rate for A and B: the recipe's B learn ρ = {recipe.candidate.loraplus_lr_ratio:.3g} times as fast"
        )
    return lines


def lost_always(recipe: Recipe) -> list[str]:
    """Return what every other tool does otherwise than AutoLR's own full run."""
    dropouts = _dropout(config_of(recipe.model).to_dict())
    return [
        *([f"dropout of the base, on here and off in the search: {', '.join(dropouts)}"] if dropouts else []),
        "order of the examples, and first values of adapter and head: drawn by the tool's own generators",
        *(
            [f"base {recipe.model}: the search trained on a copy rounded to 4 bits a weight"]
            if recipe.model == "demo:smollm2"
            else []
        ),
    ]


def _dropout(config: Mapping[str, Any]) -> list[str]:
    names = [name for name in config if "dropout" in name or name.endswith(("pdrop", "drop"))]
    return [f"{name} {config[name]:g}" for name in names if isinstance(config[name], float) and config[name] > 0]


def _measured(recipe: Recipe) -> str:
    """Return what λ = 1 at the winner's lr_v lost in the search; empty if that was not measured."""
    scores = recipe.evidence.scores if recipe.evidence else []
    same = next((score for score in scores if Baseline.SAME_LR.is_in(score.label) and score.gain), None)
    if same is None or same.gain is None:
        return ""
    mean, low, high = same.gain.mean, same.gain.low, same.gain.high
    return (
        f"; that (λ=1 at this lr_v) cost {display.gap(mean)} of test loss in the search, "
        f"90% interval {display.gap(low)} to {display.gap(high)}"
    )


def best_on_validation(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments by which a Trainer keeps the checkpoint that is best on *validation*, as AutoLR does."""
    every = max(1, -(-recipe.steps // EVALUATIONS))
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "report_to": "none",
    }


def data_files(recipe: Recipe) -> dict[str, str]:
    """Return the recipe's *train* and *validation* as JSON lines; test stays out of what other tools see.

    A line holds `prompt` and `completion`, `messages` with their `tools`, or `text`; labelled ones `text`, `pair`
    and `label`.

    Raises:
        DataError: the data cannot be read, or is not that of the search.
    """
    examples = load_examples(recipe)
    parts = split(examples, recipe.data, recipe.training.batch_size, recipe.split_seed)

    def row(index: int) -> dict[str, Any]:
        text, pair = examples.texts[index], examples.pairs[index] if examples.pairs else None
        if examples.chats:
            return examples.chats[index].row()
        if recipe.task == "sft":
            return {"prompt": text, "completion": pair}
        if recipe.task == "lm":
            return {"text": text}
        return {"text": text, **({} if pair is None else {"pair": pair}), "label": examples.labels[index]}

    def lines(rows: list[int]) -> str:
        return "".join(json.dumps(row(index), ensure_ascii=False) + "\n" for index in rows)

    return {TRAIN: lines(parts.train), SELECT: lines(parts.validation)}


def has_chats(files: Mapping[str, str]) -> bool:
    """Return True if the examples in `data_files` are chats."""
    return "messages" in json.loads(files[TRAIN].partition("\n")[0])


def _markdown(note: str) -> str:
    return "\n".join(line if line.startswith("- ") else f"{line}\n" for line in note.splitlines())
