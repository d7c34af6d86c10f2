"""The model card of a full run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from autolr import display
from autolr.model.adapters import hub_name
from autolr.model.backbone import gguf_file
from autolr.recipe import Recipe, Score
from autolr.study import LANGUAGE
from autolr.train.figure import gains_svg

# Beside the card.
FIGURE = "comparison.svg"
# What follows the code, by task.
_LEARNED = {
    "classification": "Outputs in their order: {classes}.",
    "regression": "Outputs in their order: {classes}.",
    "sft": "It was trained to complete prompts: the loss is the mean over the tokens of a completion, in nats.",
    "lm": "It was trained on whole texts: the loss is the mean over the tokens of a text, in nats.",
}

_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: {pipeline}
tags: [{tag}, autolr]
---

# {name}

{what} of `{model}`, trained by AutoLR with a rate for each role.

{verdict}

{comparison}| setting | value |
|---|---|
{rates}
| batch size, steps | {batch}, {steps} |
| data | `{data}` |

| split | loss | {metric} |
|---|---|---|
| select (chose the checkpoint, step {best_step}) | {select_loss} | {select_metric:.4f} |
| confirm (seen by no choice) | {confirm_loss} | {confirm_metric:.4f} |

## Load it

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
base = {auto}.from_pretrained(
{arguments}
)
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
```

{outputs}

## The recipe

{recipe}

## Papers

```bibtex
@inproceedings{{yao2025theoretical,
  title     = {{Theoretical Insights into Fine-Tuning Attention Mechanism: Generalization and Optimization}},
  author    = {{Yao, Xinhao and Qian, Hongjin and Hu, Xiaolin and Xu, Gengze and Liu, Wei and Luan, Jian
               and Wang, Bin and Liu, Yong}},
  booktitle = {{IJCAI}},
  pages     = {{6830--6838}},
  year      = {{2025}},
  eprint    = {{2410.02247}},
  archivePrefix = {{arXiv}},
  doi       = {{10.24963/ijcai.2025/760}}
}}
@inproceedings{{zhao2025analyzing,
  title     = {{Analyzing the Rapid Generalization of {{SFT}} via the Perspective of Attention Head
               Activation Patterns}},
  author    = {{Zhao, Yang and Du, Li and Ding, Xiao and Xiong, Kai and Liu, Ting and Qin, Bing}},
  booktitle = {{ACL (Volume 1: Long Papers)}},
  pages     = {{16980--16992}},
  year      = {{2025}},
  eprint    = {{2409.15820}},
  archivePrefix = {{arXiv}}
}}
```
"""

_KINDS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}
_WHOLE = (
    "{matrices} fully fine-tuned, and kept as a PEFT adapter that holds these matrices whole (PEFT calls it LN "
    "tuning; `merge_and_unload()` gives a plain model),"
)


def base_name(model: str) -> str:
    """Return what card and hub call the base model: nothing of the machine's folders is published."""
    return _without_folder(hub_name(model))


def _code(text: str) -> str:
    """Return a text that cannot leave the backticks, or the cell of a table, that it is put between."""
    return " ".join(text.split()).replace("`", "'").replace("|", "¦")


def _plain(text: str) -> str:
    """Return a text that is no HTML, and no line of Markdown by itself."""
    return html.escape(" ".join(text.split()), quote=False)


def _without_folder(source: str) -> str:
    path = Path(source).expanduser()
    return path.name if path.is_absolute() else source


def published(recipe: Recipe) -> Recipe:
    """Return a recipe as others may see it: places on this machine by their names alone, without the evidence."""
    data = recipe.data
    places = {name: getattr(data, name) for name in ("source", "select_split", "confirm_split")}
    named = {name: _without_folder(place) for name, place in places.items() if place is not None}
    return recipe.model_copy(
        update={
            "model": _without_folder(recipe.model),
            "data": data.model_copy(update=named),
            "evidence": None,
        }
    )


def write_card(folder: Path, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Write the card of a finished full run, and its figure, into the adapter's folder."""
    (folder / "README.md").write_text(model_card(recipe, metrics), encoding="utf-8")
    figure = gains_svg(recipe.evidence) if recipe.evidence else None
    if figure:
        (folder / FIGURE).write_text(figure, encoding="utf-8")


def model_card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """Return the card of a finished full run as Markdown with front matter; its figure lies beside it."""
    base = base_name(recipe.model)
    on_this_machine = base != hub_name(recipe.model)
    of_language = recipe.task in LANGUAGE
    kind, roles = recipe.candidate.kind, recipe.rates.trained()
    names = [f"W_{role}" for role in roles if role not in ("mlp", "head")] + ["the MLPs"] * ("mlp" in roles)
    matrices = " and ".join(", ".join(names).rsplit(", ", 1))
    rates = [f"| λ = lr_v / lr_q | {recipe.candidate.ratio:.4g} |"] if recipe.candidate.has_ratio else []
    rates += [f"| lr_{role} | {rate:.3g} |" for role, rate in roles.items()]
    rates += [f"| lr_{role} of B | {rate:.3g} |" for role, rate in recipe.rates.b.items()]
    if kind != "full":
        rates.append(f"| rank, alpha | {recipe.candidate.rank}, {recipe.method.alpha:g} |")
    return _CARD.format(
        base=json.dumps(base),
        pipeline="text-generation" if of_language else "text-classification",
        auto="AutoModelForCausalLM" if of_language else "AutoModelForSequenceClassification",
        arguments="\n".join(f"    {argument}," for argument in _arguments(recipe, base, on_this_machine)),
        outputs=_LEARNED[recipe.task].format(classes=", ".join(f"`{_code(name)}`" for name in recipe.classes)),
        what=_WHOLE.format(matrices=matrices) if kind == "full" else f"A {_KINDS[kind]} adapter on {matrices}",
        tag="full-fine-tuning" if kind == "full" else "lora",
        rates="\n".join(rates),
        name=recipe.name,
        model=_code(base if on_this_machine else recipe.model),
        comparison=_comparison(recipe),
        recipe=_fenced(published(recipe).to_yaml(), "yaml"),
        verdict=_plain(recipe.evidence.verdict if recipe.evidence else "The recipe carries no evidence of a search."),
        batch=recipe.training.batch_size,
        steps=recipe.steps,
        data=_code(_without_folder(recipe.data.source)),
        best_step=metrics["best_step"],
        metric=recipe.metric,
        select_loss=display.loss(metrics["select"]["loss"]),
        confirm_loss=display.loss(metrics["confirm"]["loss"]),
        select_metric=metrics["select"][recipe.metric],
        confirm_metric=metrics["confirm"][recipe.metric],
    )


def _comparison(recipe: Recipe) -> str:
    """Return who was in the finals and who was confirmed as tables, and the figure; nothing where nobody was."""
    found = recipe.evidence
    parts = []
    if found and found.finals:
        rows = [
            f"| {_who(score)} | {_code(score.candidate.describe())} | {display.loss(score.chosen_by)} | "
            f"{display.loss(score.confirm_loss)} |"
            for score in found.finals
        ]
        head = f"| at the end of the full run | candidate | {found.finals_by} | confirm loss |\n|---|---|---|---|"
        parts.append("\n".join([head, *rows]))
    if found and len(found.scores) > 1:
        rows = [
            f"| {_who(score)} | {_code(score.candidate.describe())} | {display.loss(score.confirm_loss)} | "
            + (
                f"{display.gap(score.gain.mean)} ({display.gap(score.gain.low)} to {display.gap(score.gain.high)}) |"
                if score.gain
                else "winner |"
            )
            for score in found.scores
        ]
        head = "| after a trial's steps | candidate | confirm loss | above the winner (90 %) |\n|---|---|---|---|"
        parts += ["\n".join([head, *rows]), f"![Confirm loss above the winner's]({FIGURE})"]
    return "".join(f"{part}\n\n" for part in parts)


def _who(score: Score) -> str:
    return _code(score.label) + (f" ({score.diverged} diverged)" if score.diverged else "")


def _fenced(text: str, language: str) -> str:
    """Return a text as a block of code that nothing in it can end."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}{fence}"


def _arguments(recipe: Recipe, base: str, on_this_machine: bool) -> list[str]:
    """Return what loads the base model, one argument a line."""
    gguf = gguf_file(recipe.model)
    where = "the/folder/of/the/file" if gguf else base
    arguments = [json.dumps(f"path/to/{where}" if on_this_machine or gguf else base)]
    arguments += [f"gguf_file={json.dumps(gguf)}"] if gguf else []
    if recipe.task not in LANGUAGE:
        names = json.dumps(recipe.classes, ensure_ascii=False).replace("`", "\\u0060")  # no fence of the card's ends
        if recipe.task == "regression":
            arguments.append('num_labels=1, problem_type="regression"')
        else:  # a base with outputs of its own has names for them, maybe others
            arguments.append(f"id2label=dict(enumerate({names}))")
            arguments.append(f"label2id={{name: number for number, name in enumerate({names})}}")
        arguments.append("pad_token_id=tokenizer.pad_token_id")
    arguments.append('dtype="float32"')
    return arguments if recipe.task in LANGUAGE else [*arguments, "ignore_mismatched_sizes=True"]


def loading(recipe: Recipe) -> list[str]:
    """Return the arguments that load a recipe's base model, one a line of code."""
    base = base_name(recipe.model)
    return _arguments(recipe, base, base != hub_name(recipe.model))
