"""Where a model or data lies, and names that become part of paths: what of a document's text may be one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from autolr.errors import redacted

# No path, and no part of one, is longer on any system.
LONGEST_PATH, LONGEST_NAME = 4096, 255


def _place(value: str) -> str:
    """Refuse what cannot be a place, and an address with a password: recipes, reports and logs would show it."""
    if any(ord(letter) < 32 for letter in value) or len(value) > LONGEST_PATH:
        raise ValueError(f"cannot be a path or a name: it has {len(value):,} letters, or some that cannot be written")
    if any(len(part.encode()) > LONGEST_NAME for part in value.split("/")):
        raise ValueError(f"cannot be a path or a name: a part is longer than {LONGEST_NAME} bytes")
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user of the name in {value.split('/')[0]!r}") from None
    if redacted(value) != value:
        raise ValueError(
            "holds a password or token, which recipes and reports would show; log in with `hf auth login`"
        )
    return value


# Where a model or data lies.
Place = Annotated[str, Field(min_length=1), AfterValidator(_place)]
# Becomes part of paths and pages.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
