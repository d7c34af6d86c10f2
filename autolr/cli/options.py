"""Options that mean the same in several verbs."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str | None, typer.Option(help="Local folder or hub id of the model.")]
Data = Annotated[str | None, typer.Option(help="A csv, tsv, json, jsonl, parquet or arrow file, or a hub data set.")]
BaseModel = Annotated[str | None, typer.Option(help="Base model of adapters without a recipe.")]
Trials = Annotated[int | None, typer.Option(help="Total number of trials.")]
FullRun = Annotated[bool | None, typer.Option("--train/--no-train", help="Do the full run after the search.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: the GPU if there is one.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Allow a metric from your own code: my_module:function.")
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model. The study or recipe must ask for it as well.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Print plain lines instead of the live table.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
