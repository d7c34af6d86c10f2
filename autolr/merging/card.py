"""The model card of a merged adapter."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from autolr import display
from autolr.merging.result import MergeResult, Scored, row
from autolr.study import LANGUAGE

_CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: {pipeline}
tags: [{tag}, merge, autolr]
---

# {name}

The average of {count} {what} of `{base_name}`, made by AutoLR. The ingredients were chosen on validation.

{verdict}

| adapter | validation loss | taken | why |
|---|---|---|---|
{ingredients}

| split | examples | loss | {metric} | loss of the best single adapter |
|---|---|---|---|---|
{scores}

Data: `{data}`.{rank} `merge.json` holds all numbers.
{outputs}
## Load it

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({arguments})
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
```

The ingredients were chosen as a greedy soup: Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482.
"""


def merge_card(name: str, found: MergeResult, classes: Sequence[str]) -> str:
    """Return the card as Markdown with front matter.

    Args:
        name: of the result.
        found: the merge.
        classes: names of the model's outputs, in their order; none of a language model.
    """
    of_language = found.task in LANGUAGE
    arguments = [json.dumps(found.base)]
    if not of_language:
        arguments += [f"num_labels={len(classes)}", "ignore_mismatched_sizes=True"]
    outputs = f"\nOutputs in their order: {', '.join(f'`{_code(one)}`' for one in classes)}.\n" if classes else ""
    return _CARD.format(
        base=json.dumps(found.base),
        base_name=_code(found.base),
        pipeline="text-generation" if of_language else "text-classification",
        auto="AutoModelForCausalLM" if of_language else "AutoModelForSequenceClassification",
        tag="lora" if found.kind == "lora" else "full-fine-tuning",
        what="LoRA adapters" if found.kind == "lora" else "adapters that hold whole matrices",
        name=_plain(name),
        count=len(found.taken),
        verdict=_plain(found.verdict),
        ingredients="\n".join(f"| {' | '.join(_code(cell) for cell in row(one))} |" for one in found.ingredients),
        scores="\n".join(
            [
                _scores("validation", found.validation, found.validation_best),
                _scores("test", found.test, found.test_best),
            ]
        ),
        metric=_code(found.metric),
        data=_code(found.data),
        rank="" if found.rank is None else f" Rank {found.rank}; the exact average has rank {found.exact_rank}.",
        arguments=", ".join(arguments),
        outputs=outputs,
    )


def _scores(split: str, own: Scored, best: Scored) -> str:
    losses = f"{display.loss(own.loss)} | {own.metric:.4f} | {display.loss(best.loss)}"
    return f"| {split} | {own.examples:,} | {losses} |"


def _code(text: str) -> str:
    """Return a text that cannot leave its backticks or its cell of a table."""
    return html.escape(" ".join(text.split()).replace("`", "'").replace("|", "¦"), quote=False)


def _plain(text: str) -> str:
    """Return a text that is no HTML, and no line of Markdown by itself."""
    return html.escape(" ".join(text.split()), quote=False)
