"""The model card of a merged adapter."""

from __future__ import annotations

import html
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from autolr import display
from autolr.finetune.card import loading
from autolr.merging.result import MergeResult, row
from autolr.schema.data import LANGUAGE
from autolr.schema.recipe import Recipe

TEMPLATE = Path(__file__).with_name("card.md.j2")


def merge_card(name: str, found: MergeResult, recipe: Recipe) -> str:
    """Return the card as Markdown; its front matter holds the results that the hub reads.

    Args:
        name: of the result.
        found: the merge.
        recipe: names the base model, the data, and the outputs in their order.
    """
    of_language = found.task in LANGUAGE
    task = "text-generation" if of_language else "text-classification"
    data = _plain(found.data)
    scores = {"loss": found.test.loss, found.metric: found.test.metric}
    front = ModelCardData(
        base_model=found.base,
        library_name="peft",
        pipeline_tag=task,
        tags=["lora" if found.kind == "lora" else "full-fine-tuning", "merge", "autolr"],
        model_name=name,
        eval_results=[
            EvalResult(task, data, data, key, value, dataset_split="test") for key, value in scores.items()
        ],
    )
    card = ModelCard.from_template(
        front,
        template_path=str(TEMPLATE),
        name=_plain(name),
        found=found,
        verdict=_plain(found.verdict),
        rows=[[_plain(cell) for cell in row(one)] for one in found.ingredients],
        scores=[("validation", found.validation, found.validation_best), ("test", found.test, found.test_best)],
        classes=[_plain(one) for one in recipe.classes],
        auto="AutoModelForCausalLM" if of_language else "AutoModelForSequenceClassification",
        arguments=loading(recipe),
        plain=_plain,
        loss=display.loss,
    )
    return str(card)


def _plain(text: str) -> str:
    """Return a text that is no HTML, and leaves neither backticks nor the cell of a table."""
    return html.escape(" ".join(text.split()).replace("`", "'").replace("|", "¦"), quote=False)
