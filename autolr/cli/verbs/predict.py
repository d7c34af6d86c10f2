"""`autolr predict`: the loss to expect from a candidate that was not tried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autolr.cli import complete
from autolr.cli.options import AsJson
from autolr.cli.output import echo_json


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of a search.", autocompletion=complete.runs)],
    lr_v: Annotated[float, typer.Option(help="Rate of W_v.")],
    ratio: Annotated[float, typer.Option(help="λ = lr_v / lr_q.")] = 1.0,
    rank: Annotated[int, typer.Option(help="Adapter rank; full matrices have none.")] = 8,
    targets: Annotated[str | None, typer.Option(help="Matrices to train; default: the study's first choice.")] = None,
    kind: Annotated[str | None, typer.Option(help="Method; default: the study's first choice.")] = None,
    loraplus_lr_ratio: Annotated[float, typer.Option(help="ρ = lr_B / lr_A.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Predict the validation loss of any candidate from a search's curves, with a 90 % prediction interval.

    Exits with code 2 if the candidate is outside the searched space, or unlike all that was tried.
    """
    from autolr.rundir.result import SearchResult
    from autolr.schema import yaml_io
    from autolr.schema.candidate import Candidate
    from autolr.tuner import advice

    result = SearchResult.load(run)
    named = {"targets": targets, "kind": kind}
    given = {
        "lr_v": lr_v,
        "ratio": ratio,
        "rank": rank,
        "loraplus_lr_ratio": loraplus_lr_ratio,
        **result.study.usual(),
        **result.study.fixed(),
    }
    given |= {name: value for name, value in named.items() if value is not None}
    prediction = advice.predict(result, yaml_io.validate(Candidate, given, "command line"))
    if as_json:
        echo_json(prediction)
        return
    typer.echo(prediction.describe())
    typer.echo(f"nearest tried candidate: {prediction.nearest.describe()}")
