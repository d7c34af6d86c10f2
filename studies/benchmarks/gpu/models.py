"""Model folders and data files without a network: random weights, a tokenizer of words, texts of two classes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from autolr.model.loading import disable_dropout
from autolr.model.quiet import quiet
from studies.benchmarks.common.shapes import PAD, Shape

# The first tokens; the others are the words `w5`, `w6`, ...
SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
CLASSES = ("bad", "good")
# Words of the text, of which each class has so many of its own.
WORDS, OWN = 2000, 40


def save(model: Any, folder: Path, vocabulary: int, *, encoder: bool = False) -> None:
    """Save a model with a tokenizer of its own, which knows a word for each token.

    Args:
        model: of transformers.
        folder: to write to.
        vocabulary: tokens in all.
        encoder: put [CLS] and [SEP] around each text.
    """
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if encoder:
        around = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    with quiet():
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", eos_token="[SEP]"
        ).save_pretrained(folder)


def build(shape: Shape, folder: Path, device: torch.device, *, language: bool) -> None:
    """Save a model of a shape with random weights.

    Args:
        shape: of the model.
        folder: to write to.
        device: where the weights are drawn.
        language: a decoder in bf16, as the published ones are; else an encoder in float32.
    """
    config = shape.config()
    disable_dropout(config)
    config.bos_token_id, config.eos_token_id = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM if language else AutoModelForMaskedLM
    with quiet(), device:
        model = auto.from_config(config, dtype=torch.bfloat16 if language else torch.float32)
    assert config.pad_token_id == PAD
    save(model.cpu(), folder, shape.sizes["vocab_size"], encoder=not language)


def sentences(lengths: Sequence[int], vocabulary: int, file: Path) -> None:
    """Write a jsonl of texts of two classes, which words of their own give away.

    Args:
        lengths: tokens of each text, [CLS] and [SEP] counted.
        vocabulary: tokens of the tokenizer.
        file: to write to.
    """
    words, rng = _words(vocabulary), random.Random(0)
    own = len(words) // 10 if len(words) < WORDS else OWN
    rows = []
    for length in lengths:
        label = rng.randrange(2)
        chosen = rng.choices(words[2 * own :], k=max(1, length - 2))
        for place in rng.sample(range(len(chosen)), max(1, len(chosen) // 6)):
            chosen[place] = rng.choice(words[label * own : (label + 1) * own])
        rows.append({"text": " ".join(chosen), "label": CLASSES[label]})
    _write(rows, file)


def prompts(length: int, count: int, vocabulary: int, file: Path) -> None:
    """Write a jsonl of prompts and completions: half of each text, which repeats the words of the prompt.

    Args:
        length: tokens of each text, the end counted.
        count: texts.
        vocabulary: tokens of the tokenizer.
        file: to write to.
    """
    words, rng = _words(vocabulary), random.Random(0)
    half = length // 2
    rows = []
    for _ in range(count):
        few = rng.sample(words, max(1, half // 4))
        texts = (" ".join(rng.choices(few, k=size)) for size in (half, length - half - 1))
        rows.append(dict(zip(("prompt", "completion"), texts, strict=True)))
    _write(rows, file)


def _words(vocabulary: int) -> list[str]:
    return [f"w{number}" for number in range(len(SPECIAL), min(vocabulary, len(SPECIAL) + WORDS))]


def _write(rows: list[dict[str, str]], file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
