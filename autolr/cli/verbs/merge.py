"""`autolr merge`: trained adapters averaged into one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AllowCode, AsJson, Device, TrustRemoteCode
from autolr.cli.output import echo_json, say, until_ctrl_c
from autolr.errors import AutoLRError

if TYPE_CHECKING:
    from autolr.abtest.ingredients import Rank
    from autolr.merging.result import MergeResult


class Task(StrEnum):
    """What adapters were trained for."""

    classification = "classification"
    regression = "regression"
    sft = "sft"
    lm = "lm"


def merge(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER...",
            help="Two or more folders of trained adapters, of full runs, or run folders that hold a full run.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="File or hub data set to choose and judge by; default: the recipes' own.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the merged adapter; default: runs/merge-ID.", show_default=False),
    ] = None,
    task: Annotated[
        Task | None,
        typer.Option(help="What adapters without a recipe were trained for.", show_default=False),
    ] = None,
    rank: Annotated[
        str,
        typer.Option(
            help="Rank of the result: a number; exact, the sum of the ranks; or auto, the smallest that costs less "
            "than 0.1 % of the validation loss."
        ),
    ] = "auto",
    every: Annotated[bool, typer.Option("--all", help="Merge all adapters instead of choosing among them.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Base model of all adapters, whatever they name.", show_default=False),
    ] = None,
    device: Device = None,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Average trained LoRA adapters into one ordinary adapter; nothing is trained.

    The best adapter on validation is taken, and others stay if they lower the validation loss of the average. The
    result is compared with the best single adapter on test, and written with a model card and merge.json.
    """
    from autolr.abtest.merge import merge as merged

    wanted = _rank(rank)
    with until_ctrl_c(lambda: "stopped; nothing was written"):
        found = merged(
            adapters,
            data=data,
            out=out,
            task=task.value if task else None,
            rank=wanted,
            every=every,
            model=model,
            device=device,
            on_log=None if as_json else say,
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
        )
    if as_json:
        echo_json({**found.model_dump(mode="json"), "folder": str(found.folder)})
    else:
        say("\n".join(_lines(found)))


def _rank(text: str) -> Rank:
    if text in ("auto", "exact"):
        return text  # type: ignore[return-value]
    if text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 10:
        return int(text)
    raise AutoLRError(f"--rank {text}: is no rank. Give a number, auto or exact")


def _lines(found: MergeResult) -> list[str]:
    from autolr.merging.result import row

    rows = [
        (label, f"validation loss {alone}, {'taken' if taken == 'yes' else 'left out'}: it {why}")
        for label, alone, taken, why in map(row, found.ingredients)
    ]
    if found.rank is not None:
        rows.append(("rank", f"{found.rank}; the exact average has {found.exact_rank}"))
    for split, own, best in (
        ("validation", found.validation, found.validation_best),
        ("test", found.test, found.test_best),
    ):
        scores = f"loss {display.loss(own.loss)}, {found.metric} {own.metric:.4f}"
        alone = f"{found.best} alone {display.loss(best.loss)}, {best.metric:.4f}"
        rows.append((split, f"{scores}; {alone} ({own.examples:,} examples)"))
    rows += [*(("note", note) for note in found.notes), ("verdict", found.verdict), ("adapter", str(found.folder))]
    width = max(len(head) for head, _ in rows)
    return [f"{head:<{width}}  {text}" for head, text in rows]
