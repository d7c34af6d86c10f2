"""`autolr compare`: an A/B comparison of recipes, or of trained adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AllowCode, AsJson, BaseModel, Device, Plain, TrustRemoteCode
from autolr.cli.output import say, until_ctrl_c

if TYPE_CHECKING:
    from autolr.abtest.comparison import Comparison


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Recipes or run folders (trained for the comparison), or folders of trained adapters (scored as "
            "they are). All are compared with the first.",
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Also compare the first recipe with this change, such as ratio=1 or 'targets=qkv rank=4'. Keys: "
            "lr_v, ratio, rank, loraplus_lr_ratio, targets, kind, lora_alpha, lr_head, max_lr_b. Repeatable."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data to compare on instead of the recipes': a file or a hub data set.")
    ] = None,
    model: BaseModel = None,
    seeds: Annotated[int, typer.Option(help="Training runs of each recipe, one per seed.")] = 3,
    steps: Annotated[int | None, typer.Option(help="Train only the first steps; default: all.")] = None,
    worth: Annotated[
        float | None, typer.Option(help="Smallest difference in loss that matters; default: 1 % of the first's loss.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; default: runs/compare-ID.")] = None,
    device: Device = None,
    slots: Annotated[
        int | None, typer.Option(help="Runs trained at once; default: as many as pay and fit into memory.")
    ] = None,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    plain: Plain = False,
) -> None:
    """Report which recipe or adapter is better, by how much, how sure that is, and what would settle it.

    Recipes are trained side by side with the same seeds and judged on test. Writes comparison.json and
    comparison.html. Run again, it trains only what is missing.
    """
    from autolr.abtest import compare as comparison
    from autolr.cli.live import watch
    from autolr.progress.callbacks import Callback
    from autolr.report.comparison import write_comparison

    changes = vary or []
    folder = out or comparison.folder_of(arms, changes, data, steps)
    if not as_json:
        say(f"comparison of {', '.join([*arms, *changes])}, folder {folder}")
    with (
        until_ctrl_c(lambda: "stopped. Finished runs are kept; the same command resumes"),
        watch(plain, Callback() if as_json else None) as callback,
    ):
        result = comparison.compare(
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
            callback=callback,
            allow_code=allow_code,
            trust_remote_code=trust_remote_code,
        )
    page = write_comparison(result, folder / "comparison.html")
    if as_json:
        typer.echo(result.to_json())
    else:
        say("\n".join([*_lines(result), f"page     {page}"]))


def _lines(result: Comparison) -> list[str]:
    width = max(len(arm.label) for arm in result.arms)
    lines = [
        f"{arm.label:<{width}}  {arm.setting}: test loss {display.loss(arm.test_loss)}, {result.metric} "
        f"{arm.test_metric:.4f}" + (f", {arm.diverged} diverged" if arm.diverged else "")
        for arm in result.arms
    ]
    trained = f"{len(result.seeds)} seeds" if result.seeds else "adapters as they are"
    lines += [f"judged   {trained}, {result.examples:,} test examples of {result.data}"]
    for pair in result.pairs:
        p_seeds = "" if pair.p_seeds is None else f", over seeds p={pair.p_seeds:.2g}"
        lines.append(
            f"{pair.label:<{width}}  over examples p={pair.p_examples:.2g}{p_seeds}; power {pair.power:.0%} for a "
            f"difference of {result.worth:.2g}, 80% for {pair.detectable:.2g}"
        )
    return [*lines, *(f"note     {note}" for note in result.notes), f"verdict  {result.verdict}"]
