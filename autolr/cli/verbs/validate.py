"""`autolr validate`: checks a study's settings, or whether AutoLR trains a model correctly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli import complete
from autolr.cli.options import AsJson, Device
from autolr.cli.output import echo_json
from autolr.errors import AutoLRError
from autolr.schema.data import TaskName

if TYPE_CHECKING:
    from autolr.conformance import Check
    from autolr.model.backbone import Backbone
    from autolr.schema.space import MethodKind, Targets

RANKS = (4, 8, 16, 32, 64)


def validate(
    study: Annotated[
        str | None,
        typer.Argument(
            help="A study file, or the name of a shipped study. Its settings are checked; all errors are listed.",
            autocompletion=complete.studies,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Local folder or hub id of the model to check.")] = None,
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the head.")] = 2,
    task: Annotated[
        TaskName, typer.Option(help="Task of the model; sft and lm check the language model without a head.")
    ] = "classification",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Check a study's settings, or a model: where its W_q, W_k and W_v are, and that AutoLR trains them correctly.

    The checks of a model take three steps on a few random tokens. Without weights, only config.json is described.
    Exit code 2: a setting or the model is refused, or a check fails.
    """
    if (study is None) == (model is None):
        raise AutoLRError("validate: give a study, or --model X. To check a study's model, pass its name to --model.")
    if study is not None:
        _study(study, as_json)
        return
    assert model is not None
    _model(model, classes, task, device, as_json)


def _study(named: str, as_json: bool) -> None:
    from autolr.cli.resolve import load

    study, _ = load(named)
    if as_json:
        echo_json(study)
        return
    typer.echo(
        f"study {study.name}: all settings are valid ({study.task}, {study.model} on {study.data.source}, "
        f"{study.budget.trials} trials)\nnext: autolr search {named} --dry-run reads data and model"
    )


def _model(model: str, classes: int, task: TaskName, device: str | None, as_json: bool) -> None:
    from autolr import conformance
    from autolr.errors import ModelError
    from autolr.model import checkpoint
    from autolr.model.device import choose_device
    from autolr.model.quiet import quiet
    from autolr.problem import load_bare

    def say(line: str) -> None:
        if not as_json:
            typer.echo(line)

    if not checkpoint.has_weights(model):
        _outline(model, classes, task, as_json)
        return
    with quiet():
        base, _ = load_bare(model, classes, choose_device(device), task)
    facts = describe(base)
    say("\n".join(facts))
    checks = []
    with quiet():
        for check in conformance.run(base):
            say(_line(check))
            checks.append(check)
    if as_json:
        echo_json({"model": model, "facts": [fact.split(None, 1) for fact in facts], "checks": checks})
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise ModelError(
            f"model {model!r}: {len(failed)} of the checks failed ({', '.join(failed)}). "
            "Do not trust a search on this model."
        )
    say("all checks passed")


def _outline(model: str, classes: int, task: TaskName, as_json: bool) -> None:
    """Describe a model from its configuration, and whether its tokenizer fits, if it has one."""
    from autolr.model.calls import check_vocabulary
    from autolr.model.meta_model import outline, tokenizer_of
    from autolr.model.quiet import quiet

    with quiet():
        base = outline(model, task, classes)
        tokenizer = tokenizer_of(model)
    facts = describe(base)
    if tokenizer is not None:
        check_vocabulary(base.model, tokenizer, model)
    needs = "not made: they need the weights, which are not here in safetensors"
    if as_json:
        echo_json({"model": model, "facts": [fact.split(None, 1) for fact in facts], "checks": [], "needs": needs})
    else:
        typer.echo("\n".join([*facts, f"checks      {needs}"]))


def describe(base: Backbone) -> list[str]:
    """Return the facts of a model, line by line."""
    from autolr.conformance.roles import shapes
    from autolr.model import adapters
    from autolr.pack.optimizers import row_optimizer

    projections = base.projections
    parameters = list(base.model.parameters())
    held = sum(p.numel() * p.element_size() for p in parameters)
    precision = str(parameters[0].dtype).removeprefix("torch.")
    lines = [
        f"model       {base.source}: family {base.model_type}, {sum(p.numel() for p in parameters):,} parameters",
        *(f"role        {kind}" for kind in shapes(base)),
        f"coverage    {projections.coverage}",
        *([f"warning     {projections.warning}"] if projections.warning else []),
        *(f"note        {what}" for what in base.notes),
        *(
            f"left out    {what}: one parameter for many matrices, trained by no targets"
            for what in projections.left_out
        ),
        f"head        {_head(base)}",
        f"base        {display.size(held)} in {precision}",
    ]

    def cost(label: str, targets: Targets, rank: int, kind: MethodKind) -> str:
        count = adapters.parameters(base, targets, rank, kind)
        trained = row_optimizer().bytes_per_parameter() * sum(count.values())
        return (
            f"{label:<11} {count['adapter']:,} parameters; with the head {display.size(trained)} to train, "
            f"with the base {display.size(trained + held)}, without activations"
        )

    ranks = [rank for rank in RANKS if rank <= projections.largest_rank]
    lines += [cost(f"rank {rank}", "qv", rank, "lora") for rank in ranks]
    if ranks:
        lines.append(cost("all-linear", "all-linear", ranks[0], "lora") + f", rank {ranks[0]}")
    return [*lines, cost("full", "qv", 0, "full")]


def _head(base: Backbone) -> str:
    parameters = base.head_parameters()
    if not parameters:
        return "none: the language model as it is"
    if all(parameter.is_meta for parameter in parameters.values()):
        return f"{', '.join(base.head)}: {sum(p.numel() for p in parameters.values()):,} parameters"
    origin = (
        "the checkpoint's"
        if not base.fresh
        else "drawn by the seed"
        if base.fresh >= parameters.keys()
        else "partly drawn"
    )
    return f"{', '.join(base.head)}: {sum(p.numel() for p in parameters.values()):,} parameters, {origin}"


def _line(check: Check) -> str:
    return f"{'passed' if check.passed else 'FAILED':<11} {check.name}: {check.found} ({check.seconds:.1f} s)"
