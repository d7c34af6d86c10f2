"""Recipes of tiny models, as a search would have written them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from autolr.schema.recipe import Recipe


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> dict[str, str]:
    """Files of prompts and completions, of texts, and of chats."""
    folder = tmp_path_factory.mktemp("rows")
    numbers = range(60)
    contents = {
        "sft": [{"prompt": f"good word{n % 30} word{n // 2}", "completion": f" fine word{n % 7}"} for n in numbers],
        "lm": [{"text": f"good word{n % 30} fine word{n // 2}"} for n in numbers],
        "chats": [
            {
                "messages": [
                    {"role": "user", "content": f"word{n % 30} word{n // 2}"},
                    {"role": "assistant", "content": f"word{n % 7}"},
                ]
            }
            for n in numbers
        ],
    }
    for name, lines in contents.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in contents}


@pytest.fixture(scope="session")
def recipe_of(rows, model_folders, reviews) -> Callable[..., Recipe]:
    """Return a function that makes a recipe of a task, with changes."""

    def make(task: str = "sft", data: str | None = None, **changes) -> Recipe:
        language = task in ("sft", "lm")
        other = {"lr_v": 8e-3, "ratio": 1, "rank": 4}
        content = {
            "name": "mine",
            "model": model_folders["lm" if language else "bert"],
            "data": {"source": data or (rows[task] if language else reviews), "max_length": 32},
            "classes": [] if language else ["bad", "good"],
            "task": task,
            "metric": {"sft": "token_accuracy", "lm": "perplexity"}.get(task, "accuracy"),
            "method": {"kind": "lora", "lora_alpha": 16},
            "candidate": {"lr_v": 8e-3, "ratio": 8, "rank": 4},
            "rates": {"q": 1e-3, "v": 8e-3, **({} if language else {"head": 5e-3})},
            "training": {
                "batch_size": 4,
                "horizon": {"steps": 6},
                "warmup_ratio": 0.5,
                "weight_decay": 0.01,
                "betas": [0.8, 0.99],
                "precision": "fp32",
            },
            "steps": 6,
            "seed": 3,
            "evidence": {
                "verdict": "tried",
                "trials": {"total": 1},
                "seeds": 2,
                "scores": [
                    {
                        "label": "same_lr",
                        "candidate": other,
                        "validation_loss": 1.0,
                        "test_loss": 1.0,
                        "test_metric": 0.5,
                        "gain": {"mean": 0.0123, "low": 0.002, "high": 0.02},
                    }
                ],
                "cost": {
                    "device_seconds": 1.0,
                    "trained_tokens": 1,
                    "evaluated_tokens": 1,
                    "full_run_equivalents": 1.0,
                },
            },
        }
        return Recipe.model_validate({**content, **changes})

    return make
