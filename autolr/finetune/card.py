"""The model card of a full run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from autolr import display
from autolr.model.adapters import hub_name
from autolr.model.checkpoint import gguf_file
from autolr.schema.data import LANGUAGE
from autolr.schema.recipe import Recipe, Score

TEMPLATE = Path(__file__).with_name("card.md.j2")
# What follows the code, by task.
_LEARNED = {
    "classification": "Outputs in their order: {classes}.",
    "regression": "Outputs in their order: {classes}.",
    "sft": "It was trained to complete prompts: the loss is the mean over the tokens of a completion, in nats.",
    "lm": "It was trained on whole texts: the loss is the mean over the tokens of a text, in nats.",
}

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
    places = {name: getattr(data, name) for name in ("source", "validation_split", "test_split")}
    named = {name: _without_folder(place) for name, place in places.items() if place is not None}
    return recipe.model_copy(
        update={
            "model": _without_folder(recipe.model),
            "data": data.model_copy(update=named),
            "evidence": None,
        }
    )


def model_card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """Return the card of a finished full run as Markdown; its front matter holds the results that the hub reads."""
    base = base_name(recipe.model)
    on_this_machine = base != hub_name(recipe.model)
    of_language, is_whole = recipe.task in LANGUAGE, recipe.candidate.kind == "full"
    task = "text-generation" if of_language else "text-classification"
    source = _code(_without_folder(recipe.data.source))
    test = metrics["test"]
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=task,
        tags=["full-fine-tuning" if is_whole else "lora", "autolr"],
        model_name=recipe.name,
        eval_results=[
            EvalResult(task, _plain(source), _plain(source), name, test[name], dataset_split="test")
            for name in dict.fromkeys(("loss", recipe.metric))
        ],
    )
    matrices = _matrices(recipe)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=recipe.name,
        what=_WHOLE.format(matrices=matrices)
        if is_whole
        else f"A {_KINDS[recipe.candidate.kind]} adapter on {matrices}",
        model=_code(base if on_this_machine else recipe.model),
        verdict=_plain(recipe.evidence.verdict if recipe.evidence else "The recipe carries no evidence of a search."),
        evidence=recipe.evidence,
        settings=_settings(recipe) | {"data": f"`{source}`"},
        metric=recipe.metric,
        best_step=metrics["best_step"],
        validation=metrics["validation"],
        test=test,
        auto="AutoModelForCausalLM" if of_language else "AutoModelForSequenceClassification",
        arguments=_arguments(recipe, base, on_this_machine),
        outputs=_LEARNED[recipe.task].format(classes=", ".join(f"`{_code(name)}`" for name in recipe.classes)),
        recipe=_fenced(published(recipe).to_yaml(), "yaml"),
        who=_who,
        code=_code,
        loss=display.loss,
        above=_above,
    )
    return str(card)


def _matrices(recipe: Recipe) -> str:
    """Return what is trained, such as `W_q, W_k and W_v`."""
    roles = recipe.rates.trained()
    names = [f"W_{role}" for role in roles if role not in ("mlp", "head")] + ["the MLPs"] * ("mlp" in roles)
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _settings(recipe: Recipe) -> dict[str, str]:
    """Return the rows of the card's table of settings."""
    rows = {"λ = lr_v / lr_q": f"{recipe.candidate.ratio:.4g}"} if recipe.candidate.has_ratio else {}
    rows |= {f"lr_{role}": f"{rate:.3g}" for role, rate in recipe.rates.trained().items()}
    rows |= {f"lr_{role} of B": f"{rate:.3g}" for role, rate in recipe.rates.b.items()}
    if recipe.candidate.kind != "full":
        rows["rank, alpha"] = f"{recipe.candidate.rank}, {recipe.method.lora_alpha:g}"
    return {**rows, "batch size, steps": f"{recipe.training.batch_size}, {recipe.steps}"}


def _who(score: Score) -> str:
    return _code(score.label) + (f" ({score.diverged} diverged)" if score.diverged else "")


def _above(score: Score) -> str:
    gain = score.gain
    return f"{display.gap(gain.mean)} ({display.gap(gain.low)} to {display.gap(gain.high)})" if gain else "winner"


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
