"""`autolr train`: the full run from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autolr import display
from autolr.cli import complete
from autolr.cli.options import AllowCode, Device, TrustRemoteCode
from autolr.cli.output import until_ctrl_c
from autolr.errors import AutoLRError

if TYPE_CHECKING:
    from autolr.finetune.run import TrainResult
    from autolr.schema.recipe import Recipe


def train(
    recipe: Annotated[
        Path, typer.Argument(help="recipe.yaml, or the run folder that holds it.", autocompletion=complete.recipes)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the full run; default: train beside the recipe.")
    ] = None,
    device: Device = None,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="Report to a tracker of transformers, such as tensorboard, mlflow or wandb. Repeatable. "
            "Default: none."
        ),
    ] = None,
    push_to_hub: Annotated[
        bool,
        typer.Option(
            "--push-to-hub",
            help="When the run ends, upload the adapter and its card to a private repository on the hub.",
        ),
    ] = False,
    hub_model_id: Annotated[
        str | None, typer.Option(help="Repository for --push-to-hub; default: the recipe's name, in your account.")
    ] = None,
    hub_public: Annotated[
        bool, typer.Option("--hub-public", help="Make a new repository of --push-to-hub public.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read recipe, data and model, show what would run, then stop.")
    ] = False,
    allow_code: AllowCode = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train the recipe to its horizon; keep the checkpoint that is best on validation; report test.

    Run again, a stopped full run resumes from its last checkpoint.
    """
    from autolr.schema.recipe import Recipe

    if (hub_model_id or hub_public) and not push_to_hub:
        raise AutoLRError(f"{'--hub-model-id' if hub_model_id else '--hub-public'}: works only with --push-to-hub")
    loaded = Recipe.load(recipe)
    code = {"allow_code": allow_code, "trust_remote_code": trust_remote_code}
    if dry_run:
        _show_plan(loaded, device, **code)
        return
    folder = out or (recipe if recipe.is_dir() else recipe.parent) / "train"
    repository = _repository(hub_model_id or loaded.name, not hub_public) if push_to_hub else None
    with until_ctrl_c(lambda: "stopped; the same command resumes from the last checkpoint"):
        result = full_run(loaded, folder, device, report_to, **code)
    if repository:
        from autolr.finetune.hub import upload

        typer.echo(f"hub      {upload(result.adapter, repository)}")


def _repository(name: str, private: bool) -> str | None:
    """Return the repository that the first process uploads to; it is there before anything is trained."""
    from autolr.finetune.distributed import Processes
    from autolr.finetune.hub import claim

    return claim(name, private=private) if Processes.here().first else None


def _show_plan(recipe: Recipe, device: str | None, **code: bool) -> None:
    from autolr.model.device import choose_device
    from autolr.problem import load_problem

    problem = load_problem(recipe, choose_device(device), None, **code)
    splits = {"train": problem.data.train, "validation": problem.data.validation, "test": problem.data.test}
    lines = [
        f"recipe        {recipe.name}: {recipe.model} on {recipe.data.source}",
        f"candidate     {recipe.candidate.describe()}; {recipe.rates.describe()}",
        f"coverage      {problem.backbone.projections.coverage}",
        f"base          {problem.backbone.placed or 'as its checkpoint is quantized'}",
        "examples      " + ", ".join(f"{name} {len(tokens):,}" for name, tokens in splits.items()),
        *(f"data          {line}" for line in problem.data.summary),
        f"full run      {recipe.steps} steps, batch {recipe.training.batch_size}",
        "nothing was written",
    ]
    typer.echo("\n".join(lines))


def full_run(
    recipe: Recipe,
    folder: Path,
    device: str | None,
    report_to: list[str] | None = None,
    **code: bool,
) -> TrainResult:
    """Do the full run and print its result."""
    from autolr.finetune.distributed import Processes
    from autolr.finetune.run import train

    here = Processes.here()

    def say(line: str) -> None:
        if here.first:
            typer.echo(line)

    together = f", {here.count} processes with {recipe.training.batch_size // here.count} of each batch" * (
        here.count > 1
    )
    say(f"\nmodel    {recipe.model}, data {recipe.data.source}{together}")
    say(f"full run {recipe.steps} steps, {recipe.candidate.describe()}; {recipe.rates.describe()}")
    result = train(recipe, folder, device=device, on_log=_log, report_to=report_to or [], **code)
    test = result.metrics["test"]
    say(
        f"test     {recipe.metric} {test[recipe.metric]:.4f}, loss {display.loss(test['loss'])} "
        f"(best checkpoint on validation: step {result.metrics['best_step']})\n"
        f"adapter  {result.adapter}"
    )
    return result


def _log(entry: dict[str, Any]) -> None:
    if "eval_loss" in entry:
        typer.echo(f"  step {entry.get('step', '?')}: validation loss {display.loss(entry['eval_loss'])}")
