"""A model, data, a study and a recipe that are so small that hundreds of searches take minutes."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

GOOD, BAD = ("good", "fine", "great", "warm"), ("bad", "dull", "poor", "cold")
OTHER = tuple(f"word{number}" for number in range(24))
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def world(folder: Path, rows: int = 160) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a model and data into a folder; return a study and a recipe over them, as their files hold them."""
    words = ["[UNK]", "[PAD]", "[CLS]", *GOOD, *BAD, *OTHER]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=len(words), max_position_embeddings=32, pad_token_id=1, num_labels=2, **SIZES
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "model")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(folder / "model")
    rng = random.Random(0)
    examples = []
    for row in range(rows):
        text = [*rng.sample(OTHER, rng.randrange(2, 6)), rng.choice(GOOD if row % 2 else BAD)]
        rng.shuffle(text)
        examples.append({"text": " ".join(text), "label": "good" if row % 2 else "bad"})
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(examples)
    (folder / "data.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    study = {
        "name": "tiny",
        "model": str(folder / "model"),
        "data": {"source": str(folder / "data.csv"), "validation": 0.2, "test": 0.2, "max_length": 16},
        "task": "classification",
        "metric": "accuracy",
        "space": {"lr_v": {"low": 1e-3, "high": 1e-1}, "ratio": [1, 2, 4], "rank": [1, 2], "targets": ["qv"]},
        "method": {"kind": ["lora"], "lora_alpha": 4.0},
        "training": {"batch_size": 4, "horizon": {"steps": 8}, "precision": "fp32"},
        "search": {"stages": [{"to": 4}], "rungs": [2], "slots": 2, "seeds": 2},
        "baselines": ["default"],
        "budget": {"trials": 4, "time": "10m"},
        "seed": 0,
        "train": False,
    }
    recipe = {
        "format": 1,
        "name": "tiny",
        "model": study["model"],
        "data": study["data"],
        "classes": ["bad", "good"],
        "task": "classification",
        "metric": "accuracy",
        "method": {"kind": ["lora"], "lora_alpha": 4.0, "lr_head": 0.01, "max_lr_b": 0.1},
        "candidate": {
            "lr_v": 0.01,
            "ratio": 2.0,
            "rank": 2,
            "targets": "qv",
            "kind": "lora",
            "loraplus_lr_ratio": 1.0,
        },
        "rates": {"q": 0.005, "v": 0.01, "head": 0.01},
        "training": study["training"],
        "steps": 8,
        "split_seed": 0,
        "seed": 0,
        "versions": {"torch": "2"},
    }
    return study, recipe
