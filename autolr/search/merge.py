"""The merge of trained adapters: chosen on validation, cut to a rank, and saved as one stock PEFT adapter."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autolr import display
from autolr.data import sources
from autolr.errors import DataError, ModelError, RunError
from autolr.merging.adapter import Adapter
from autolr.merging.average import average
from autolr.merging.card import merge_card
from autolr.merging.cut import Spectrum, smallest_rank
from autolr.merging.greedy import Choice, Tried, choose
from autolr.merging.result import REPORT, Ingredient, MergeResult, Scored
from autolr.model.adapters import base_place
from autolr.model.device import choose_device
from autolr.recipe import Interval
from autolr.search import provenance
from autolr.search.arms import Arm
from autolr.search.compare import other_data
from autolr.search.ingredients import Ingredients, Rank, config_digest
from autolr.search.scored import Judged, Outcome, Scorer, Split
from autolr.search.spread import LEVEL, Spread
from autolr.study import Data, TaskName
from autolr.train.card import base_name

# What an automatic rank may cost, as a share of the validation loss.
COST = 0.001
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
    kind = given.task(task)
    where = choose_device(device)
    examples = Judged.read(given.arms, _data(data, given.arms, kind), kind, allow_code=allow_code)
    scorer = examples.scorer(given.reference, model, where, trust_remote_code=trust_remote_code)
    if len(scorer.data.confirm) < 2:
        raise DataError(
            f"data {examples.data.source!r}: has one test example, and an interval needs two. Add examples"
        )
    with tempfile.TemporaryDirectory() as place:
        bench = _Bench(given, scorer, Path(place), on_log or (lambda _: None))
        choice = bench.all() if every else bench.choice()
        cut = bench.cut(choice, rank)
        result = _report(bench, choice, cut, folder, kind, base_name(examples.data.source), str(where))
    _save(cut.adapter, result, scorer, given)
    return result


class _Bench:
    """Scores adapters and averages of them, as stock PEFT loads them.

    Args:
        given: the adapters.
        scorer: their base model and the examples.
        place: a folder for averages.
        say: receives a line for each score.
    """

    def __init__(self, given: Ingredients, scorer: Scorer, place: Path, say: Callable[[str], None]) -> None:
        self.given, self.scorer, self.place, self.say = given, scorer, place, say
        self.alone: list[Outcome] = []
        for arm in given.arms:
            self.alone.append(scorer.outcome(arm, "select"))
            say(f"{arm.label}: validation loss {display.loss(self.alone[-1].loss)}")
        if not any(math.isfinite(one.loss) for one in self.alone):
            raise ModelError("merge: no adapter has a finite validation loss. Their trainings diverged; train again")

    def outcome(self, adapter: Adapter, split: Split) -> Outcome:
        """Return what an adapter scores on a split."""
        adapter.save(self.place)
        return self.scorer.outcome(Arm(adapter.label, str(self.place), None, self.place), split)

    def average(self, places: Sequence[int]) -> Adapter:
        """Return the exact average of the adapters at these places."""
        return average([self.given.held[index] for index in places], base=self.given.model)

    def loss(self, places: Sequence[int]) -> float:
        """Return the validation loss of an average."""
        found = self.outcome(self.average(places), "select").loss
        names = ", ".join(self.given.arms[index].label for index in places)
        self.say(f"average of {names}: validation loss {display.loss(found)}")
        return found

    def choice(self) -> Choice:
        """Choose the ingredients."""
        return choose([one.loss for one in self.alone], self.loss)

    def all(self) -> Choice:
        """Take all adapters.

        Raises:
            ModelError: one has no finite loss.
        """
        losses = [one.loss for one in self.alone]
        for arm, loss in zip(self.given.arms, losses, strict=True):
            if not math.isfinite(loss):
                raise ModelError(f"{arm.source}: has the validation loss {loss}. Its training diverged; leave it out")
        order = tuple(sorted(range(len(losses)), key=losses.__getitem__))
        return Choice(order, self.loss(order), tuple(Tried(index, True, None, "all are taken") for index in order))

    def cut(self, choice: Choice, rank: Rank) -> _Cut:
        """Return the average that was chosen, cut to the wanted rank."""
        whole = self.average(choice.taken)
        if whole.kind == "full":
            return _Cut(whole, None, {}, {})
        spectrum = Spectrum(whole)
        tried: dict[int, float | None] = {}
        if rank == "exact" or (rank == "auto" and len(choice.taken) == 1):
            rank = spectrum.largest
        elif rank == "auto":
            rank = self._smallest(spectrum, choice, tried)
        return _Cut(spectrum.cut(rank), spectrum.largest, dict(sorted(tried.items())), spectrum.values)

    def _smallest(self, spectrum: Spectrum, choice: Choice, tried: dict[int, float | None]) -> int:
        """Return the smallest rank that serves, and write the validation losses of those tried into `tried`."""
        tried[spectrum.largest] = choice.loss

        def loss_of(rank: int) -> float:
            found = self.outcome(spectrum.cut(rank), "select").loss
            tried[rank] = _finite(found)
            self.say(f"cut to rank {rank}: validation loss {display.loss(found)}")
            return found

        limit, best = choice.loss + COST * abs(choice.loss), self.alone[choice.taken[0]].loss
        if choice.loss < best:  # the cut must not lose what the merge has gained
            limit = min(limit, best)
        return smallest_rank(spectrum.largest, loss_of, limit)


@dataclass(frozen=True)
class _Cut:
    """A merge at its final rank.

    Attributes:
        adapter: the result.
        exact_rank: of the exact average; None: whole matrices.
        tried: validation losses at the ranks that were tried.
        values: singular values of the exact average, by module.
    """

    adapter: Adapter
    exact_rank: int | None
    tried: dict[int, float | None]
    values: dict[str, list[float]]


def _report(
    bench: _Bench, choice: Choice, cut: _Cut, folder: Path, kind: TaskName, data: str, device: str
) -> MergeResult:
    """Judge a merge on test beside the best single adapter.

    Raises:
        ModelError: a test loss is no finite number.
    """
    given, first = bench.given, choice.taken[0]
    validation, test = bench.outcome(cut.adapter, "select"), bench.outcome(cut.adapter, "confirm")
    test_best = bench.outcome(given.held[first], "confirm")
    if not (math.isfinite(test.loss) and math.isfinite(test_best.loss)):
        raise ModelError("merge: a test loss is no finite number. Leave out adapters whose training diverged")
    gain = Spread.of((test_best.losses - test.losses).numpy()[None]).interval()
    best = given.arms[first].label
    ingredients = [_ingredient(bench, tried) for tried in choice.tried]
    return MergeResult(
        folder=folder,
        verdict=_verdict([one.label for one in ingredients if one.taken], best, gain, test_best.loss),
        base=base_name(given.base),
        base_config=config_digest(given.base),
        kind="full" if cut.exact_rank is None else "lora",
        task=kind,
        metric=bench.scorer.task.metric,
        data=data,
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
        notes=[*given.notes(choice), *_notes(given, bench.scorer, kind)],
        device=device,
        versions=provenance.versions(),
        commit=provenance.commit(),
    )


def _ingredient(bench: _Bench, tried: Tried) -> Ingredient:
    given, alone = bench.given, bench.alone[tried.index]
    return Ingredient(
        label=given.arms[tried.index].label,
        digest=given.digests[tried.index],
        rank=max(given.held[tried.index].ranks().values(), default=None),
        validation_loss=_finite(alone.loss),
        validation_metric=alone.metric,
        taken=tried.taken,
        merged_loss=None if tried.merged is None else _finite(tried.merged),
        reason=tried.reason,
    )


def _score(found: Outcome) -> Scored:
    return Scored(loss=found.loss, metric=found.metric, examples=len(found.losses))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdict(taken: Sequence[str], best: str, gain: Interval, loss: float) -> str:
    """Say what the merge is worth; `loss` is the test loss of the best single adapter."""
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
        f"Whether t{who[1:]} is better than {best}, the best single adapter, is open: the gain in test loss is "
        f"{display.gap(gain.mean)}, {bounds}."
    )


def _notes(given: Ingredients, scorer: Scorer, kind: TaskName) -> list[str]:
    notes = ["the interval holds for other examples, not for other trainings"]
    unknown = [arm.label for arm in given.arms if arm.recipe is None]
    if unknown:
        notes.append(f"the training data of {', '.join(unknown)} is not known: it may contain these examples")
    if unknown and kind == "classification":
        notes.append(f"the outputs are taken for {', '.join(scorer.task.classes)}, in this order")
    return notes


def _data(given: str | Data | None, arms: Sequence[Arm], task: TaskName) -> Data | None:
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
            if sources.load(same, task).fingerprint == recipe.data_fingerprint:
                return same
        except DataError:  # its columns or splits are others
            pass
    return other.model_copy(update={"select": SHARE, "confirm": SHARE})


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


def _save(adapter: Adapter, result: MergeResult, scorer: Scorer, given: Ingredients) -> None:
    """Write the folder of a merge, whole or not at all."""
    folder, config = result.folder, {**adapter.config, "base_model_name_or_path": base_place(given.base)}
    draft = folder.parent / f".{folder.name}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    Adapter(adapter.label, config, adapter.tensors).save(draft)
    scorer.base.tokenizer.save_pretrained(str(draft))
    (draft / "README.md").write_text(merge_card(folder.name, result, scorer.task.classes), encoding="utf-8")
    (draft / REPORT).write_text(result.to_json() + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
