"""Tiny random models of real families, and token sets: offline, in a blink."""

from __future__ import annotations

import random

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from autolr.data.batches import TokenSet
from autolr.model import backbone
from autolr.model.backbone import Backbone

VOCABULARY = 60
SHAPES = {
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "roberta": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "electra": {
        "hidden_size": 32,
        "embedding_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
}
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": None,
}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
FAMILIES = (*SHAPES, *DECODERS)


def model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """Return a random classification model of two layers, frozen, without dropout."""
    shape = SHAPES.get(family, DECODER)
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=1, num_labels=3, **shape
    )
    backbone.disable_dropout(config)
    torch.manual_seed(seed)
    built = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # larger weights than the initializer's, so that attention matters
        for name, parameter in built.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(8)
    return built.to(dtype).eval().requires_grad_(False)


def base(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a tiny model as a backbone whose head is fresh."""
    built = model(family, dtype)
    body = built.base_model_prefix
    fresh = frozenset(name for name, _ in built.named_parameters() if not name.startswith(f"{body}."))
    return backbone.from_model(built, None, f"tiny-{family}", fresh)


def tokens(count: int = 48, seed: int = 0) -> TokenSet:
    """Return examples of 3 to 12 tokens in three classes."""
    rng = random.Random(seed)
    ids = [[rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(3, 13))] for _ in range(count)]
    return TokenSet(ids=ids, labels=[sum(example) % 3 for example in ids], pad_id=1)
