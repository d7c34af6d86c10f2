"""`autolr heads`: what attention heads do, before and after fine-tuning."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autolr.cli.options import AsJson, BaseModel, Device
from autolr.cli.output import echo_json
from autolr.schema.data import TaskName

if TYPE_CHECKING:
    from autolr.insight.heads import Heads


def heads(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|ADAPTER...",
            help="Models, or run folders and folders of trained adapters (compared before and after training).",
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Data of the samples; default: test of each adapter's recipe.")
    ] = None,
    task: Annotated[
        TaskName, typer.Option(help="Task of models, and of adapters without a recipe.")
    ] = "classification",
    samples: Annotated[int, typer.Option(min=2, help="Number of samples at most.")] = 512,
    signed: Annotated[
        bool,
        typer.Option(
            "--signed", help="Average signed activations, as in paper 2's formula, instead of absolute ones."
        ),
    ] = False,
    combine: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write the first adapter's change as a combination of the others', and recommend how to mix this "
            "many samples of their tasks.",
        ),
    ] = None,
    unrelated: Annotated[
        list[str] | None, typer.Option(help="Adapter of an unrelated task, a null for --combine. Repeatable.")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="Select data instead: write to --out the --take samples of this file that use the model's heads "
            "most like --data."
        ),
    ] = None,
    take: Annotated[int, typer.Option(min=1, help="Number of samples to take from --pool.")] = 500,
    model: BaseModel = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result; default: runs/heads. With --pool: a csv file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for sampling and head initialization.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Report which attention heads a task uses, what training changes, and which tasks it resembles.

    Writes heads.json, the patterns sample by sample, and heads.html.
    """
    from autolr.insight.heads import heads as look

    if pool is not None:
        _choose(given, data, pool, take, task, samples, out or Path("chosen.csv"), seed, device)
        return
    result = look(
        given,
        data,
        task=task,
        samples=samples,
        kind="signed" if signed else "absolute",
        combine_for=combine,
        unrelated=unrelated or [],
        model=model,
        seed=seed,
        device=device,
        told=None if as_json else lambda line: typer.echo(f"seen     {line}"),
    )
    from autolr.report.heads import write_heads

    folder = result.save(out or Path("runs") / "heads")
    page = write_heads(result, folder / "heads.html")
    if as_json:
        echo_json(result.summary())
    else:
        typer.echo("\n".join([*lines(result), f"page     {page}"]))


def lines(result: Heads) -> list[str]:
    """Return the result in lines for a terminal."""
    summary = result.summary()
    report = []
    for look in summary["looks"]:
        report.append(
            f"model    {look['label']}: {len(look['layers'])} layers of {len(look['patterns']['before'][0])} heads"
        )
        for name in ("gini", "variation", "kurtosis"):
            report.append(f"{name:<9}" + " → ".join(_interval(one) for one in look[name].values()))
        report.append("entropy  " + " → ".join(f"{share:.3f}" for share in look["entropy"].values()) + " of the most")
        if "correlation" in look:
            report.append(f"change   correlation of before and after {_interval(look['correlation'])}")
        for name in ("most_used", "least_used"):
            report.append(f"{name.partition('_')[0]:<9}" + ", ".join(map(_head, look[name])))
    fit = summary.get("combination")
    if fit:
        report.append(
            f"fit      R² {_interval(fit['r2'])}; heads permuted {_interval(fit['null_heads'])}, p {fit['p']:.3f}"
        )
        if fit["null_unrelated"]:
            report.append("null     unrelated tasks: R² " + ", ".join(f"{r2:.3f}" for r2 in fit["null_unrelated"]))
        for weight in fit["weights"]:
            report.append(
                f"weight   {weight['task']}: {_interval(weight['share'])}, {fit['advice'][weight['task']]} samples"
            )
    return report


def _interval(estimate: dict[str, float]) -> str:
    return "{mean:.3f} ({low:.3f} to {high:.3f})".format(**estimate)


def _head(head: dict[str, Any]) -> str:
    return "{layer}.{head} {mean:.2g}".format(**head)


def _choose(
    given: list[str],
    data: str | None,
    pool: str,
    take: int,
    task: TaskName,
    samples: int,
    out: Path,
    seed: int,
    device: str | None,
) -> None:
    from autolr.data import tables
    from autolr.errors import AutoLRError
    from autolr.insight.heads import chosen
    from autolr.schema.data import Data

    if len(given) != 1 or data is None:
        raise AutoLRError("--pool: needs exactly one model, and --data of the target task")
    rows = chosen(given[0], data, pool, take, task=task, samples=samples, seed=seed, device=device)
    table, _ = tables.read(Data(source=pool))
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows([column[row] for column in table.values()] for row in rows)
    typer.echo(
        f"chosen   {len(rows)} of {len(next(iter(table.values()))):,} samples of {pool}, the nearest first: {out}"
    )
