"""The section `budget`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from autolr.schema.yaml_io import Document


def _seconds(value: Any) -> Any:
    """Read `90`, `"90s"`, `"10m"`, `"1.5h"` as seconds."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smh]?)\s*", value)
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    if not match or math.isnan(number):
        raise ValueError("must be a time such as 90s, 10m or 1.5h")
    return number * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]


class Budget(Document):
    """When the search stops: a total of trials, and a time after which no trial starts."""

    trials: int = Field(16, ge=1, le=10**6, description="a total: a resumed search counts what it has")
    time: Annotated[Seconds, PlainSerializer(lambda s: f"{s:g}s", return_type=str)] | None = Field(
        None, description="such as 90s, 10m, 1.5h; null: none"
    )
