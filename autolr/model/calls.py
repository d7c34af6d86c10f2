"""Which parts of a model a task calls, and whether the model has an embedding for each of its tokenizer's tokens."""

from __future__ import annotations

from typing import Any

import torch

from autolr.errors import ModelError

PROBE_TOKENS = 8
PROBE_TEXT = "a text of some words, read to see which parts of a model a task calls"


def check_vocabulary(model: Any, tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer that knows tokens for which the model has no embedding.

    Raises:
        ModelError: it does: tokens were added and the embeddings were not resized, or it belongs to another model.
    """
    rows = len(model.get_input_embeddings().weight)
    known = tokenizer.get_vocab().items()
    beyond = sorted((number, token) for token, number in known if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise ModelError(
            f"model {source!r}: its tokenizer has {len(beyond):,} tokens without an embedding (the first: {token!r}, "
            f"id {number:,}; the model has {rows:,} embeddings). Enlarge them with "
            f"model.resize_token_embeddings({beyond[-1][0] + 1}), save the model, or take the model's own tokenizer"
        )


@torch.no_grad()
def called(model: Any, tokenizer: Any, source: str) -> frozenset[str]:
    """Return the names of the modules that run when the model reads a short text.

    Raises:
        ModelError: it cannot read one.
    """
    names: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: names.add(name))
        for name, module in model.named_modules()
    ]
    ids, config = _tokens(model, tokenizer), model.config.get_text_config()
    has_cache = getattr(config, "use_cache", None)
    try:
        # The device `meta` has no numbers, and transformers looks at those of a mask, or of places without a cache.
        config.use_cache = ids.is_meta
        model(input_ids=ids, attention_mask=None if ids.is_meta else torch.ones_like(ids))
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"model {source!r}: cannot read a text of {ids.numel()} tokens: {reason}") from None
    finally:
        config.use_cache = has_cache
        for handle in handles:
            handle.remove()
    return frozenset(names)


def _tokens(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return a few tokens as the tokenizer writes them, [1, tokens]; without a tokenizer some of the vocabulary."""
    config = model.config.get_text_config()
    end = getattr(config, "eos_token_id", None)
    if tokenizer is not None:
        ids = list(tokenizer(PROBE_TEXT)["input_ids"])
        ids = ids[:PROBE_TOKENS] + ids[-1:]
        end = tokenizer.eos_token_id
    else:
        ids = [number * 7 % int(config.vocab_size) for number in range(PROBE_TOKENS)]
    end = end[0] if isinstance(end, list) else end
    if end is not None and ids[-1] != end and end < config.vocab_size:  # BART's kind reads the state of the end token
        ids.append(int(end))
    return torch.tensor([ids], device=model.device)
