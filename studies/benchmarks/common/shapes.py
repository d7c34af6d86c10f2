"""The models and token sets the benchmarks run on: real shapes, random weights where none are embedded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from autolr.data import demo
from autolr.data.batches import IGNORED, TokenSet
from autolr.model import backbone, loading, precision
from autolr.model.backbone import Backbone
from autolr.model.quiet import quiet
from autolr.schema.data import Data
from autolr.schema.training import Precision

CLASSES = ["negative", "positive"]
PAD = 1
# Token lengths of the embedded training sentences, kept for machines without the embedded model and data.
LENGTHS = Path(__file__).with_name("natural-lengths.json")


@dataclass(frozen=True)
class Shape:
    """A model by its family and sizes; none given: the embedded model."""

    name: str
    family: str = ""
    sizes: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        """Return the configuration of a random model of the shape."""
        return AutoConfig.for_model(self.family, num_labels=len(CLASSES), pad_token_id=PAD, **self.sizes)


def _encoder(hidden: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1026,
    }


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
    }


MINILM = Shape("minilm")
TINY_ROBERTA = Shape("roberta_tiny", "roberta", _encoder(128, 4, 4, 5000))
ROBERTA = Shape("roberta_base", "roberta", _encoder(768, 12, 12, 50265))
SMOLLM2 = Shape("smollm2_135m", "llama", _llama(576, 1536, 30, 9, 3, 49152))
LLAMA_1B = Shape("llama_1b", "llama", _llama(2048, 8192, 16, 32, 8, 128256))
LLAMA_8B = Shape("llama_8b", "llama", _llama(4096, 14336, 32, 32, 8, 128256))
TINIEST_ROBERTA = Shape("roberta_tiniest", "roberta", _encoder(32, 2, 4, 100))
TINY_LLAMA = Shape("llama_tiny", "llama", _llama(32, 48, 2, 4, 2, 200))


def base(shape: Shape, device: torch.device, wanted: Precision = "auto", *, language: bool = False) -> Backbone:
    """Return a frozen base of the shape, in the precision a search would load it in.

    Args:
        shape: of the model.
        device: where the model goes.
        wanted: precision of products with the frozen weights.
        language: return a language model, not one with a head.
    """
    if not shape.family:
        with quiet():
            return backbone.load(demo.MODEL, CLASSES, device, wanted)
    chosen = precision.choose(wanted, device)
    half = chosen == "bf16" and precision.whole(device)
    config = shape.config()
    loading.disable_dropout(config)
    torch.manual_seed(0)
    if language:
        config.use_cache = False
    auto: Any = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    with quiet(), device:
        model = auto.from_config(config, dtype=torch.bfloat16 if half else torch.float32)
    model.eval().requires_grad_(False)
    prefix = f"{model.base_model_prefix}."
    fresh = frozenset(name for name, _ in model.named_parameters() if not language and not name.startswith(prefix))
    built = backbone.from_model(model, None, shape.name, fresh)
    built.precision = chosen
    if chosen == "bf16" and not half:
        precision.round_products(model, built.head)
    return built


@cache
def natural_lengths() -> tuple[int, ...]:
    """Return the token lengths of the embedded sentences."""
    return tuple(json.loads(LENGTHS.read_text(encoding="utf-8")))


def tokens(shape: Shape, length: int | None, count: int = 4096) -> TokenSet:
    """Return examples for the shape.

    Args:
        shape: the embedded model gets the embedded sentences, the others random tokens.
        length: tokens of every example; None: the lengths of the embedded sentences.
        count: examples, where their length is given.
    """
    if not shape.family and length is None:
        return _sentences()
    lengths = natural_lengths() if length is None else (length,) * count
    vocabulary = shape.sizes.get("vocab_size", 30000)
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, vocabulary, size).tolist() for size in lengths]
    return TokenSet(ids, rng.integers(0, len(CLASSES), len(ids)).tolist(), PAD if shape.family else 0)


def texts(shape: Shape, length: int, count: int, learned: float = 1.0) -> TokenSet:
    """Return random texts for a language model of the shape.

    Args:
        shape: gives the vocabulary.
        length: tokens of every text.
        count: texts.
        learned: share of each text that is learned: its last tokens.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(5, shape.sizes["vocab_size"], (count, length)).tolist()
    prompt = length - round(learned * length)
    return TokenSet(ids, [[IGNORED] * prompt + own[prompt:] for own in ids], PAD)


@cache
def _sentences() -> TokenSet:
    from transformers import AutoTokenizer

    from autolr.data import sources
    from autolr.data.pipeline import prepare

    data = Data(source=demo.DATA)
    examples = sources.load(data)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(demo.model_path(demo.MODEL)))
    return prepare(examples, data, tokenizer, 1, 0).train


def flops(base: Backbone, length: float, rank: int) -> float:
    """Return the floating point operations of one training step on one token.

    Forward and backward of the frozen products (their weights get no gradient), of attention, and of the adapters.

    Args:
        base: the model.
        length: tokens a token attends to.
        rank: of the adapters on W_q and W_v.
    """
    head = set(base.head_parameters())
    frozen = sum(
        p.numel()
        for name, p in base.model.named_parameters()
        if p.dim() == 2 and name not in head and "embed" not in name
    )
    adapters = sum(rank * (site.d_in + site.d_out) for site in base.projections.of("qv"))
    width = sum(site.d_out for site in base.projections.sites if site.role == "q")  # of all layers
    return 4.0 * frozen + 6.0 * adapters + 12.0 * length * width
