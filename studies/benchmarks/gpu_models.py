"""Model folders and data files for a machine without a network: random weights, a tokenizer of words, made sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# The places of tokens that mean something, as `tests.tiny` and `shapes` number them.
SPECIAL = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")


def save(model: Any, folder: Path, vocabulary: int) -> None:
    """Save a model with a tokenizer of its own: the words `w5`, `w6`, ..., a token each.

    Args:
        model: of transformers.
        folder: to write to.
        vocabulary: tokens in all, those that mean something included.
    """
    words = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", eos_token="[SEP]"
    ).save_pretrained(folder)
