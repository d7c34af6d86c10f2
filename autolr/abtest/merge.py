"""The merge of trained adapters: chosen on validation, cut to a rank, and saved as one stock PEFT adapter."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from autolr import display
from autolr.abtest.arms import Arm
from autolr.abtest.averages import Bench, Cut, Outcome, finite
from autolr.abtest.compare import other_data
from autolr.abtest.ingredients import Ingredients, Rank, config_digest
from autolr.data import sources
from autolr.errors import DataError, RunError
from autolr.finetune.card import base_name
from autolr.merging.adapter import Adapter
from autolr.merging.card import merge_card
from autolr.merging.greedy import Choice, Tried
from autolr.merging.result import REPORT, Ingredient, MergeResult, Scored
from autolr.model import meta_model
from autolr.model.adapters import base_place
from autolr.model.device import choose_device
from autolr.model.quiet import quiet
from autolr.problem import Problem, load_problem
from autolr.rundir import provenance
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data, TaskName
from autolr.schema.method import Method
from autolr.schema.metrics import metrics_of
from autolr.schema.recipe import Interval, Rates, Recipe
from autolr.schema.training import Training
from autolr.tuner.judge.paired_stats import LEVEL, PairedDifference

# Examples that no recipe names train nothing: this share of them chooses, and this share judges.
SHARE = 0.4


def merge(
    adapters: Sequence[str | Path],
    *,
    data: str | Data | None = None,
    out: str | Path | None = None,
    task: TaskName | None = None,
    rank: Rank = "auto",
    every: bool = False,
    model: str | None = None,
    device: str | None = None,
    on_log: Callable[[str], None] | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> MergeResult:
    """Average trained LoRA adapters into one adapter.

    The best adapter on validation is taken first. The others follow in their order, and one stays if the validation
    loss of the average falls. The result is an ordinary PEFT adapter; the report compares its test loss with that of
    the best single adapter. Adapters that began with the same first values merge well; others seldom do.

    Args:
        adapters: folders of trained adapters, of full runs, or run folders that hold a full run.
        data: the examples to choose and judge by; None: the recipes' own, which must be the same.
        out: folder of the merged adapter; None: `runs/merge-<identity>`.
        task: what the adapters were trained for; None: what their recipes say, else classification.
        rank: of the result; `exact`: the sum of the ranks; `auto`: the smallest that costs less than 0.1 % of the
            validation loss.
        every: merge all adapters instead of choosing among them.
        model: base model of all adapters, whatever they name.
        device: such as `cpu` or `cuda:0`; None: the GPU if there is one.
        on_log: receives a line for each adapter and average that was scored.
        allow_code: whether the recipes' metric may be code of your own, `my_module:function`.
        trust_remote_code: whether Python code that comes with the model may run, if the recipes ask for it.

    Returns:
        The report; `merge.json` in the folder holds it as well.

    Raises:
        AutoLRError: input is at fault; nothing has been written.
    """
    given = Ingredients.read(adapters, model, rank)
    folder = Path(out) if out is not None else given.default_folder()
    _check_folder(folder, given.digests)
    recipe = _recipe(given, task, _data(data, given.arms))
    with quiet():
        problem = load_problem(
            recipe, choose_device(device), allow_code=allow_code, trust_remote_code=trust_remote_code
        )
    if len(problem.data.test) < 2:
        raise DataError(f"data {recipe.data.source!r}: has one test example, and an interval needs two. Add examples")
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(given, problem, Path(place), on_log or (lambda _: None))
        choice = bench.all() if every else bench.choice()
        cut = bench.cut(choice, rank)
        result = _report(bench, choice, cut, recipe, folder)
    _save(cut.adapter, result, problem, recipe, given)
    return result


def _recipe(given: Ingredients, task: TaskName | None, data: Data | None) -> Recipe:
    """Return what base model, examples and task are loaded by: an ingredient's recipe, or one made up for it."""
    recipe, kind = given.reference.recipe, given.task(task)
    if recipe is not None:
        own = {"model": given.model} if given.model else {}
        other = {"data": data, "data_fingerprint": None, "tokenization": None} if data else {}
        return recipe.model_copy(update={**own, **other})
    assert data is not None
    classes = sources.load(data, kind).classes
    return Recipe(
        name="merge",
        model=given.base,
        data=data,
        classes=meta_model.in_order(given.base, classes) if kind == "classification" else classes,
        task=kind,
        metric=metrics_of(kind)[0],
        method=Method(),
        candidate=Candidate(lr_v=1.0, ratio=1.0, rank=1),
        rates=Rates(),
        training=Training(batch_size=1),
        steps=1,
    )


def _report(bench: Bench, choice: Choice, cut: Cut, recipe: Recipe, folder: Path) -> MergeResult:
    """Judge a merge on test beside the best single adapter."""
    given, first = bench.given, choice.taken[0]
    validation, test, test_best = (
        bench.validation(cut.adapter),
        bench.test(cut.adapter),
        bench.test(given.held[first]),
    )
    gain = PairedDifference.of((test_best.losses - test.losses).numpy()[None]).interval()
    best = given.arms[first].label
    ingredients = [_ingredient(bench, tried) for tried in choice.tried]
    return MergeResult(
        folder=folder,
        verdict=_verdict([one.label for one in ingredients if one.taken], best, gain, test_best.loss),
        base=base_name(given.base),
        base_config=config_digest(given.base),
        kind="full" if cut.exact_rank is None else "lora",
        task=recipe.task,
        metric=recipe.metric,
        data=base_name(recipe.data.source),
        best=best,
        ingredients=ingredients,
        rank=max(cut.adapter.ranks().values(), default=None),
        exact_rank=cut.exact_rank,
        cuts=cut.tried,
        singular_values={name: [float(f"{value:.5g}") for value in own] for name, own in cut.values.items()},
        validation=_score(validation),
        validation_best=_score(bench.alone[first]),
        test=_score(test),
        test_best=_score(test_best),
        gain=gain,
        level=LEVEL,
        notes=[*given.notes(choice), *_notes(given, recipe)],
        device=str(next(bench.problem.backbone.model.parameters()).device),
        versions=provenance.versions(),
        commit=provenance.commit(),
    )


def _ingredient(bench: Bench, tried: Tried) -> Ingredient:
    given, alone = bench.given, bench.alone[tried.index]
    return Ingredient(
        label=given.arms[tried.index].label,
        digest=given.digests[tried.index],
        rank=max(given.held[tried.index].ranks().values(), default=None),
        validation_loss=finite(alone.loss),
        validation_metric=alone.metric,
        taken=tried.taken,
        merged_loss=None if tried.merged is None else finite(tried.merged),
        reason=tried.reason,
    )


def _score(found: Outcome) -> Scored:
    return Scored(loss=found.loss, metric=found.metric, examples=len(found.losses))


def _verdict(taken: Sequence[str], best: str, gain: Interval, loss: float) -> str:
    """Return what the merge is worth; `loss` is the test loss of the best single adapter."""
    if len(taken) == 1:
        return f"No average has a lower validation loss than {best} alone: the result is {best}."
    who = f"The merge of {', '.join(taken[:-1])} and {taken[-1]}"
    share = f" ({abs(gain.mean / loss):.1%})" if loss else ""
    bounds = f"90% interval {display.gap(gain.low)} to {display.gap(gain.high)}"
    if gain.low > 0 or gain.high < 0:
        word = "better" if gain.mean > 0 else "worse"
        return (
            f"{who} is {word} than {best}, the best single adapter: its test loss is {display.loss(abs(gain.mean))}"
            f"{share} {'lower' if gain.mean > 0 else 'higher'}. The gain has the {bounds}."
        )
    return (
        f"It is inconclusive whether t{who[1:]} is better than {best}, the best single adapter: the gain in test "
        f"loss is {display.gap(gain.mean)}, {bounds}."
    )


def _notes(given: Ingredients, recipe: Recipe) -> list[str]:
    notes = ["the interval holds for other examples, not for other trainings"]
    unknown = [arm.label for arm in given.arms if arm.recipe is None]
    if unknown:
        notes.append(f"the training data of {', '.join(unknown)} is not known: it may contain these examples")
    if given.reference.recipe is None and recipe.task == "classification":
        notes.append(f"the outputs are taken for {', '.join(recipe.classes)}, in this order")
    return notes


def _data(given: str | Data | None, arms: Sequence[Arm]) -> Data | None:
    """Return the data to judge by; None: that of the recipes.

    A file that the recipes were trained on is split as they split it, so that no training example judges. Of another
    file all but a fifth is used.
    """
    other = other_data(given, arms)
    if other is None or not isinstance(given, str):
        return other
    recipe = next((arm.recipe for arm in arms if arm.recipe is not None), None)
    if recipe is not None:
        same = recipe.data.model_copy(update={"source": other.source})
        try:
            if sources.load(same, recipe.task).fingerprint == recipe.data_fingerprint:
                return same
        except DataError:  # its columns or splits are others
            pass
    return other.model_copy(update={"validation": SHARE, "test": SHARE})


def _check_folder(folder: Path, digests: Sequence[str]) -> None:
    """Refuse a folder that holds anything but a merge of the same adapters.

    Raises:
        RunError: it does.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder}: is a file, not a folder. Choose another --out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        before = [one["digest"] for one in content["ingredients"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        before = []
    if sorted(before) != sorted(digests):
        raise RunError(f"--out {folder}: holds something else than a merge of these adapters. Choose another --out")


def _save(adapter: Adapter, result: MergeResult, problem: Problem, recipe: Recipe, given: Ingredients) -> None:
    """Write the folder of a merge, whole or not at all."""
    folder, config = result.folder.absolute(), {**adapter.config, "base_model_name_or_path": base_place(given.base)}
    draft = folder.parent / f".{folder.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    Adapter(adapter.label, config, adapter.tensors).save(draft)
    problem.backbone.tokenizer.save_pretrained(str(draft))
    (draft / "README.md").write_text(merge_card(folder.name, result, recipe), encoding="utf-8")
    (draft / REPORT).write_text(result.to_json() + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
