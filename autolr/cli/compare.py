"""`autolr compare`: an A/B comparison of recipes, or of trained adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AllowCode, AsJson, BaseModel, Device, Plain, TrustRemoteCode
from autolr.cli.output import say, until_ctrl_c

if TYPE_CHECKING:
    from autolr.search.comparison import Comparison


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Recipes or run folders, which are trained; or folders of trained adapters, which are scored. The "
            "others are measured against the first.",
            show_default=False,
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="One more to compare: the first recipe with a change, such as ratio=1 or 'targets=qkv rank=4'; "
            "known: lr_v, ratio, rank, rho, targets, kind, alpha, lr_head, max_lr_b. May be given again.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Other data than the recipes': a file or a hub data set.", show_default=False)
    ] = None,
    model: BaseModel = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each recipe.")] = 3,
    steps: Annotated[
        int | None, typer.Option(help="Only the first steps of each training; default: all.", show_default=False)
    ] = None,
    worth: Annotated[
        float | None,
        typer.Option(
            help="The smallest difference of loss that matters; default: 1 % of the first's.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison; default: runs/compare-ID.", show_default=False),
    ] = None,
    device: Device = None,
    slots: Annotated[
        int | None,
        typer.Option(help="Trainings at once; default: as many as pay and fit the memory.", show_default=False),
    ] = None,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Say which recipe or adapter is better, by how much, how sure that is, and what would settle it.

    Recipes are trained side by side with the same seeds and judged on confirm. Writes comparison.json and
    comparison.html; given again, it trains only what is missing.
    """
    from autolr.cli.live import watch
    from autolr.report.comparison import write_comparison
    from autolr.search import compare as comparison
    from autolr.search.loop import Watcher

    changes = vary or []
    folder = out or comparison.folder_of(arms, changes, data, steps)
    if not as_json:
        say(f"comparison of {', '.join([*arms, *changes])}, folder {folder}")
    with (
        until_ctrl_c(lambda: "stopped; all that ended is kept. The same command goes on"),
        watch(plain, Watcher() if as_json else None) as watcher,
    ):
        found = comparison.compare(
            arms,
            vary=changes,
            data=data,
            model=model,
            seeds=seeds,
            steps=steps,
            worth=worth,
            slots=slots,
            out=folder,
            device=device,
            watcher=watcher,
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
        )
    page = write_comparison(found, folder / "comparison.html")
    if as_json:
        typer.echo(found.to_json())
    else:
        say("\n".join([*_lines(found), f"page     {page}"]))


def _lines(found: Comparison) -> list[str]:
    width = max(len(arm.label) for arm in found.arms)
    lines = [
        f"{arm.label:<{width}}  {arm.setting}: confirm loss {display.loss(arm.confirm_loss)}, {found.metric} "
        f"{arm.confirm_metric:.4f}" + (f", {arm.diverged} diverged" if arm.diverged else "")
        for arm in found.arms
    ]
    trained = f"{len(found.seeds)} seeds" if found.seeds else "adapters as they are"
    lines += [f"judged   {trained}, {found.examples:,} confirm examples of {found.data}"]
    for pair in found.pairs:
        p_seeds = "" if pair.p_seeds is None else f", over seeds p={pair.p_seeds:.2g}"
        lines.append(
            f"{pair.label:<{width}}  over examples p={pair.p_examples:.2g}{p_seeds}; power {pair.power:.0%} for a "
            f"difference of {found.worth:.2g}, 80% for {pair.detectable:.2g}"
        )
    return [*lines, *(f"note     {note}" for note in found.notes), f"verdict  {found.verdict}"]
