"""Python code that comes with a model: it runs where the document and the caller both say so, and nowhere else."""

from __future__ import annotations

from typing import Any

from autolr.errors import AutoLRError, ModelError


def agreed(asked: bool, given: bool, model: str) -> bool:
    """Return True if a model's own code may run.

    Args:
        asked: `trust_remote_code` of the study or recipe.
        given: `--trust-remote-code` of the command line.
        model: what the user calls the model.

    Raises:
        AutoLRError: one says yes and the other no.
    """
    if asked and not given:
        raise AutoLRError(
            f"trust_remote_code: true would run Python code that comes with the model {model!r}; if you trust it, "
            "give --trust-remote-code as well (trust_remote_code=True in Python)"
        )
    if given and not asked:
        raise AutoLRError(
            f"--trust-remote-code: the study or recipe must ask for the code of the model {model!r} as well; write "
            "trust_remote_code: true in it"
        )
    return asked


def check_config(config: Any, source: str) -> None:
    """Refuse a configuration that has transformers fetch compiled code from the hub for its attention.

    Raises:
        ModelError: it does.
    """
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        named = str(getattr(part, "_attn_implementation", None) or "")
        if "/" in named:
            raise ModelError(
                f"model {source!r}: its config.json has attention computed by code of the hub ({named[:80]}), which "
                "AutoLR does not fetch; set training.attn_implementation, such as training.attn_implementation=sdpa"
            )


def names_own_code(config: Any, auto: str) -> bool:
    """Return True if a configuration names code of its own for an auto class of transformers."""
    return auto in (getattr(config, "auto_map", None) or {})
