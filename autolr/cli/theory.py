"""`autolr theory`: what each choice of matrices costs, how Theorem 1 ranks it, and what the first steps do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from autolr.cli.options import AsJson, Device
from autolr.cli.output import echo_json
from autolr.display import size
from autolr.study import TaskName

if TYPE_CHECKING:
    from autolr.theory import Theory

CAVEAT = (
    "the bound is far above any loss, so its value promises nothing; it ranks, and always for fewer parameters: it "
    "cannot say that W_v matters more than W_k"
)


def theory(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of the model.", show_default=False)],
    targets: Annotated[
        str, typer.Option(help="Matrices, choices separated by commas; the first is the measure.")
    ] = "qv,qkv",
    ranks: Annotated[str, typer.Option(help="Of adapters, separated by commas.")] = "8",
    kinds: Annotated[str, typer.Option(help="lora, rslora, dora, full, separated by commas.")] = "lora",
    examples: Annotated[
        int | None, typer.Option(min=1, help="N of the bound; default: of --data, or 10,000.", show_default=False)
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Outputs of the head, where no --data say.")] = 2,
    task: Annotated[TaskName, typer.Option(help="What the model is for.")] = "classification",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the peak memory of training steps as well.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of such a step.")] = 16,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each example of it.")] = 64,
    data: Annotated[
        str | None,
        typer.Option(help="Train first steps on these and tell what W_q and W_v change in each.", show_default=False),
    ] = None,
    lr_v: Annotated[
        float | None, typer.Option(help="Rate of W_v in them; default: the rule of thumb's.", show_default=False)
    ] = None,
    ratio: Annotated[float, typer.Option(help="λ of them.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of adapter, head and data.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Say what training W_q and W_v, or other matrices, costs, how theory ranks it, and which learns too slowly."""
    from autolr.theory import theory as ask

    found = ask(
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
        echo_json(found.summary())
    else:
        typer.echo("\n".join(lines(found)))


def lines(found: Theory) -> list[str]:
    """Return the result in lines for a terminal."""
    said = [f"model    {found.model}: {found.coverage}, {size(found.base_bytes)} in the frozen base"]
    for one in found.choices:
        cost = one.cost
        name = f"{cost.targets} {cost.kind}" + (f" r={cost.rank}" if cost.rank else "")
        line = (
            f"{name:<18} {cost.adapter:>12,} parameters, head {cost.head:,}; adapter {size(cost.saved_bytes)}, "
            f"to train {size(cost.optimizer_bytes)}; bound {one.ratio:.4f} of the first's"
        )
        if one.peak is not None and one.predicted_peak is not None:
            line += f"; peak {size(one.peak)}, predicted {size(one.predicted_peak)}"
        said.append(line)
    first = found.choices[0].cost
    said.append(f"bound    {first.gap:.3g} for {first.targets} of {found.examples:,} examples: {CAVEAT}")
    if not found.steps or found.candidate is None:
        return said
    said.append(
        f"steps    {found.candidate.describe()}; changes of the attention's output by its size, mean over layers"
    )
    for step in found.steps:
        q, v, both = (sum(part) / len(part) for part in (step.layers_q, step.layers_v, step.layers_both))
        updates = ", ".join(f"{role} {value:.1e}" for role, value in step.updates.items())
        said.append(
            f"step {step.step:<4} loss {step.loss:.3f}; by q {q:.1e}, by v {v:.1e}, by both together {both:.1e}; "
            f"update by weight {updates}; alike at λ={step.balance(found.candidate.ratio):.2g}"
        )
    said.append(
        f"balance  W_q and W_v would change the output alike at λ={found.balance:.2g} (mean over these steps)"
    )
    return said


def _words(text: str, option: str) -> list[str]:
    from typing import get_args

    from autolr.errors import DocumentError
    from autolr.study import MethodKind, Targets

    known = get_args(Targets if option == "targets" else MethodKind)
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        raise DocumentError("command line", [f"--{option} {text!r}: choose of {', '.join(known)}"])
    return words


def _numbers(text: str) -> list[int]:
    from autolr.errors import DocumentError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise DocumentError("command line", [f"--ranks {text!r}: must be numbers such as 8 or 8,16"]) from None
