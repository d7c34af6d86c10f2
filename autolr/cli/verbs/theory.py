"""`autolr theory`: what each choice of matrices costs, how Theorem 1 ranks it, and what the first steps do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autolr import display
from autolr.cli.options import AsJson, Device
from autolr.cli.output import echo_json
from autolr.schema.data import TaskName

if TYPE_CHECKING:
    from autolr.insight.theory import Theory

CAVEAT = (
    "the bound is far above any loss, so its value promises nothing; it ranks, and always for fewer parameters: it "
    "cannot say that W_v matters more than W_k"
)


def theory(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of the model.")],
    targets: Annotated[
        str, typer.Option(help="Matrices to train; choices separated by commas, the first is the reference.")
    ] = "qv,qkv",
    ranks: Annotated[str, typer.Option(help="Adapter ranks, separated by commas.")] = "8",
    kinds: Annotated[str, typer.Option(help="Methods (lora, rslora, dora, full), separated by commas.")] = "lora",
    examples: Annotated[
        int | None, typer.Option(min=1, help="N of the bound; default: that of --data, or 10,000.")
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the head, if no --data gives them.")] = 2,
    task: Annotated[TaskName, typer.Option(help="Task of the model.")] = "classification",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure the peak memory of training steps.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per measured step.")] = 16,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per example.")] = 64,
    data: Annotated[
        str | None, typer.Option(help="Train first steps on this data and report how much W_q and W_v change.")
    ] = None,
    lr_v: Annotated[
        float | None, typer.Option(help="Rate of W_v in these steps; default: the rule of thumb's.")
    ] = None,
    ratio: Annotated[float, typer.Option(help="λ used in these steps.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for adapter, head and data.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Report the cost of training W_q and W_v or other matrices, its rank in theory, and which learns too slowly."""
    from autolr.insight.theory import theory as ask

    result = ask(
        model,
        targets=_words(targets, "targets"),  # type: ignore[arg-type]
        ranks=_numbers(ranks),
        kinds=_words(kinds, "kinds"),  # type: ignore[arg-type]
        examples=examples,
        classes=classes,
        task=task,
        measure=measure,
        batch_size=batch_size,
        tokens=tokens,
        data=data,
        lr_v=lr_v,
        ratio=ratio,
        seed=seed,
        device=device,
    )
    if as_json:
        echo_json(result.summary())
    else:
        typer.echo("\n".join(lines(result)))


def lines(result: Theory) -> list[str]:
    """Return the result in lines for a terminal."""
    report = [f"model    {result.model}: {result.coverage}, {display.size(result.base_bytes)} in the frozen base"]
    for choice in result.choices:
        cost = choice.cost
        name = f"{cost.targets} {cost.kind}" + (f" r={cost.rank}" if cost.rank else "")
        line = (
            f"{name:<18} {cost.adapter:>12,} parameters, head {cost.head:,}; adapter "
            f"{display.size(cost.saved_bytes)}, to train {display.size(cost.optimizer_bytes)}; "
            f"bound {choice.ratio:.4f} of the first's"
        )
        if choice.peak is not None and choice.predicted_peak is not None:
            line += f"; peak {display.size(choice.peak)}, predicted {display.size(choice.predicted_peak)}"
        report.append(line)
    first = result.choices[0].cost
    report.append(f"bound    {first.gap:.3g} for {first.targets} of {result.examples:,} examples: {CAVEAT}")
    if not result.steps or result.candidate is None:
        return report
    report.append(
        f"steps    {result.candidate.describe()}; changes of the attention's output by its size, mean over layers"
    )
    for step in result.steps:
        q, v, both = (sum(part) / len(part) for part in (step.layers_q, step.layers_v, step.layers_both))
        updates = ", ".join(f"{role} {value:.1e}" for role, value in step.updates.items())
        report.append(
            f"step {step.step:<4} loss {step.loss:.3f}; by q {q:.1e}, by v {v:.1e}, by both together {both:.1e}; "
            f"update by weight {updates}; alike at λ={step.balance(result.candidate.ratio):.2g}"
        )
    report.append(
        f"balance  W_q and W_v would change the output alike at λ={result.balance:.2g} (mean over these steps)"
    )
    return report


def _words(text: str, option: str) -> list[str]:
    from typing import get_args

    from autolr.errors import DocumentError
    from autolr.schema.space import MethodKind, Targets

    known = get_args(Targets if option == "targets" else MethodKind)
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        raise DocumentError("command line", [f"--{option} {text!r}: choose from {', '.join(known)}"])
    return words


def _numbers(text: str) -> list[int]:
    from autolr.errors import DocumentError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise DocumentError("command line", [f"--ranks {text!r}: must be numbers such as 8 or 8,16"]) from None
