"""Tiny random models of real families, and token sets: offline, in a blink."""

from __future__ import annotations

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from autolr.data.batches import TokenSet
from autolr.model import backbone, loading
from autolr.model.backbone import Backbone

VOCABULARY = 60
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": None}
# The grouped product of experts has no float64.
_EAGER = {"experts_implementation": "eager"}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4}
# Separate projections: what the model type is called, and its shape.
SEPARATE = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "electra": {**ENCODER, "embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "deberta-v2": {
        **ENCODER,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), GROUPED),
    "gemma2": {**GROUPED, "sliding_window": 32},
    "gemma3_text": {**GROUPED, "sliding_window": 32},
    **dict.fromkeys(("olmo2", "starcoder2", "stablelm", "cohere", "granite"), GROUPED),
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **_EAGER},
}
# Fused ones; what follows the colon is a layout.
FUSED = {
    "gpt2": _GPT,
    "gpt_bigcode:mqa": {**_GPT, "multi_query": True},
    "gpt_bigcode:mha": {**_GPT, "multi_query": False},
    "gpt_neox": ENCODER,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon:new": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon:mqa": {**_FALCON, "new_decoder_architecture": False, "multi_query": True},
    "falcon:mha": {**_FALCON, "new_decoder_architecture": False, "multi_query": False, "alibi": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    "phi3": GROUPED,
    "modernbert": ENCODER,
}
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma")
# Families transformers has no classification class for.
LANGUAGE_ONLY = ("cohere", "granite")
# Families that are taken as language models as well; their name then ends in `/lm`.
LANGUAGE = tuple(f"{family}/lm" for family in ("llama", "gemma2", "gpt2", "gpt_neox", "falcon:new", "bloom", "mpt"))
SHAPES = {**SEPARATE, **FUSED}
FAMILIES = (*SHAPES, *LANGUAGE)


def model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """Return a random model of two layers, frozen, without dropout; a classification model where there is one.

    `llama/lm` is the language model.
    """
    family, _, language = family.partition("/")
    config = config_of(family, SHAPES[family])
    loading.disable_dropout(config)
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if language or family in LANGUAGE_ONLY else AutoModelForSequenceClassification
    built = auto.from_config(config)
    with torch.no_grad():  # larger weights than the initializer's, so that attention matters
        for name, parameter in built.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(8)
    return built.to(dtype).eval().requires_grad_(False)


def config_of(family: str, shape: dict):
    """Return the configuration of a family; `gpt_bigcode:mqa` is of the family `gpt_bigcode`."""
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    return AutoConfig.for_model(family.partition(":")[0], max_position_embeddings=64, num_labels=3, **tokens, **shape)


def base(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a tiny model as a backbone whose head is fresh."""
    built = model(family, dtype)
    body = built.base_model_prefix
    fresh = frozenset(name for name, _ in built.named_parameters() if not name.startswith(f"{body}."))
    of_language = built.get_output_embeddings() is not None
    return backbone.from_model(built, None, f"tiny-{family}", frozenset() if of_language else fresh)


def tokens(count: int = 48, seed: int = 0, *, learned: bool = False) -> TokenSet:
    """Return examples of 3 to 12 tokens in three classes; or ones whose last one to five tokens are learned."""
    rng = random.Random(seed)
    ids = [[rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(3, 13))] for _ in range(count)]
    if learned:
        starts = [rng.randrange(max(1, len(own) - 5), len(own)) for own in ids]
        return TokenSet(ids, [[-100] * start + own[start:] for own, start in zip(ids, starts, strict=True)], 1)
    return TokenSet(ids=ids, labels=[sum(example) % 3 for example in ids], pad_id=1)
