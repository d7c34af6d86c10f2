"""What attention heads do, before and after fine-tuning: paper 2, section by section."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolr import display
from autolr.abtest import trained_adapters
from autolr.abtest.arms import ADAPTER, Arm, base_model, read_arm
from autolr.data import sources
from autolr.data.batches import TokenSet
from autolr.data.pipeline import Prepared, token_set
from autolr.data.sources import Examples
from autolr.errors import AutoLRError, DataError, RunError
from autolr.insight import activations, attention_probs, measures
from autolr.insight.activations import Array, Kind, Pattern
from autolr.insight.data_selection import nearest
from autolr.insight.task_mixture import Change, Combination, combine, mixture
from autolr.model.backbone import Backbone, fresh_head
from autolr.model.device import choose_device
from autolr.model.quiet import quiet
from autolr.problem import Unsplit, load_examples, load_problem, load_unsplit
from autolr.rundir import provenance
from autolr.schema import yaml_io
from autolr.schema.data import Data, TaskName
from autolr.schema.recipe import Interval, Recipe
from autolr.schema.study import Study
from autolr.schema.training import Training

SAMPLES = 512
SHOWN_HEADS = 5


@dataclass(frozen=True)
class Look:
    """One model looked at, before and after its fine-tuning.

    Attributes:
        label: what it is called.
        model: the base model.
        data: where the samples come from.
        before: the pattern of the base; of a task with a head, with the head as training finds it.
        after: that of the trained adapter on the same samples; None where a model was looked at alone.
        entropy_before, entropy_after: attention entropy of each head as a share of the most it could be, the mean
            over samples, [layers, heads].
    """

    label: str
    model: str
    data: str
    before: Pattern
    after: Pattern | None
    entropy_before: Array
    entropy_after: Array | None

    @property
    def last(self) -> Pattern:
        """The pattern after training, where there is one."""
        return self.after or self.before

    @property
    def moments(self) -> dict[str, Pattern]:
        """Its patterns by name: `before`, and `after` if there are two."""
        return {"before": self.before, **({"after": self.after} if self.after else {})}

    @property
    def change(self) -> Change | None:
        """Both patterns, where there are two."""
        return Change(self.before, self.after) if self.after else None

    def summary(self, kind: Kind) -> dict[str, Any]:
        """Return the figures, plain numbers, intervals as [low, high]."""
        moments = self.moments
        found: dict[str, Any] = {
            "label": self.label,
            "model": self.model,
            "data": self.data,
            "samples": len(self.before.losses),
            "layers": list(self.before.layers),
            "loss": {name: float(one.losses.mean()) for name, one in moments.items()},
        }
        for name, statistic in measures.STATISTICS.items():
            found[name] = _plain({m: measures.interval([one], statistic, kind) for m, one in moments.items()})
        entropies = {"before": self.entropy_before, "after": self.entropy_after}
        found["entropy"] = {name: float(one.mean()) for name, one in entropies.items() if one is not None}
        if self.after:
            found["correlation"] = measures.interval([*moments.values()], measures.correlation, kind).model_dump()
            found["mse"] = measures.interval([*moments.values()], measures.mse, kind).model_dump()
        pattern = self.last.of(kind)
        low, high = measures.bounds(self.last, kind)
        order = measures.ranked(pattern)
        for name, places in (("most_used", order[:SHOWN_HEADS]), ("least_used", order[: -SHOWN_HEADS - 1 : -1])):
            found[name] = [
                {"layer": i, "head": j, "mean": pattern[i, j], "low": low[i, j], "high": high[i, j]}
                for i, j in places
            ]
        found["patterns"] = {name: one.of(kind).tolist() for name, one in moments.items()}
        found["entropies"] = {name: one.tolist() for name, one in entropies.items() if one is not None}
        return found


@dataclass(frozen=True)
class Heads:
    """What `heads` has found.

    Attributes:
        looks: one for each model or adapter, in the order given.
        kind: which patterns the figures are of.
        combination: the first one's change as a combination of the others'; None where it was not asked for.
        advice: samples of each basic task to train on first; None without a combination.
    """

    looks: list[Look]
    kind: Kind
    combination: Combination | None = None
    advice: dict[str, int] | None = None

    def distances(self) -> Array:
        """Return 1 - correlation of the changes of all tasks (of the patterns, of models alone), [looks, looks]."""
        changes = [look.change for look in self.looks]
        if all(changes):
            return measures.distances([change.of(self.kind) for change in changes if change])
        return measures.distances([look.last.of(self.kind) for look in self.looks])

    def summary(self) -> dict[str, Any]:
        """Return all figures as plain numbers."""
        found: dict[str, Any] = {"kind": self.kind, "looks": [look.summary(self.kind) for look in self.looks]}
        if len(self.looks) > 1 and len({look.before.of().shape for look in self.looks}) == 1:
            found["distances"] = self.distances().tolist()
        if self.combination:
            figures = self.combination._asdict()
            figures["weights"] = [_plain(weight._asdict()) for weight in self.combination.weights]
            found["combination"] = _plain(figures) | {"advice": self.advice}
        return {**found, "versions": provenance.versions(), "commit": provenance.commit()}

    def save(self, folder: str | Path) -> Path:
        """Write `heads.json` and the patterns, sample by sample, as safetensors; return the folder."""
        target = Path(folder)
        yaml_io.write_text(target / "heads.json", json.dumps(self.summary(), indent=1) + "\n")
        for number, look in enumerate(self.looks):
            for name, moment in look.moments.items():
                moment.save(target / f"{number}-{name}.safetensors")
        return target

    def _repr_html_(self) -> str:
        """Return the figures as a notebook shows them."""
        rows = []
        for look in self.looks:
            found = look.summary(self.kind)
            for name in ("gini", "variation", "kurtosis"):
                rows.append((f"{look.label}: {name}", " → ".join(f"{v['mean']:.3f}" for v in found[name].values())))
        return display.table(f"Heads, {self.kind} activations", rows)


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Return figures with intervals as mappings."""
    return {name: value.model_dump() if isinstance(value, Interval) else value for name, value in figures.items()}


def heads(
    given: Sequence[str | Path | Recipe] | str | Path | Recipe,
    data: str | Data | None = None,
    *,
    task: TaskName = "classification",
    samples: int = SAMPLES,
    kind: Kind = "absolute",
    combine_for: int | None = None,
    unrelated: Sequence[str | Path] = (),
    model: str | None = None,
    seed: int = 0,
    device: str | None = None,
    told: Callable[[str], None] | None = None,
) -> Heads:
    """Look at the attention heads of models and trained adapters.

    Args:
        given: models; or run folders and folders of trained adapters, which are looked at before and after training.
        data: where the samples come from; None: what each adapter's recipe says, of it *test*, then *validation*.
        task: of models alone, and of adapters without a recipe.
        samples: at most so many are looked at; paper 2 finds 100 to 500 enough.
        kind: `absolute` or `signed`; see `Pattern.of`.
        combine_for: writes the first one's change as a combination of the others', and advises how to make so many
            samples of the basic tasks; None: no combination.
        unrelated: adapters of tasks that have nothing to do with the first: what they explain is a null.
        model: base model of adapters that came without a recipe.
        seed: of which samples are taken, and of a new head.
        device: such as `cpu` or `cuda:0`; None: the GPU where there is one.
        told: is called with a line whenever one is done.

    Raises:
        AutoLRError: something of this is at fault.
    """
    names = [given] if isinstance(given, (str, Path, Recipe)) else list(given)
    if not names or samples < 2:
        raise AutoLRError(
            f"heads needs a model or an adapter and at least 2 samples (given: {len(names)}, {samples})"
        )
    if combine_for is not None and len(names) < 2:
        raise AutoLRError("--combine: give the adapter of the complex task first, then those of the basic tasks")
    other = Data(source=data) if isinstance(data, str) else data
    sampler = _Sampler(other, task, samples, model, seed, choose_device(device))
    looks = []
    for name in (*names, *unrelated):
        looks.append(sampler.look(name))
        if told:
            told(f"{looks[-1].label}: {len(looks[-1].before.losses)} samples of {looks[-1].data}")
    strangers = looks[len(names) :]
    result = Heads(_labelled(looks[: len(names)]), kind)
    if combine_for is None:
        return result
    alone = [look.label for look in looks if look.after is None]
    if alone:
        raise AutoLRError(f"--combine: {', '.join(alone)}: is not trained, so there is no change to combine")
    if len({look.model for look in looks}) > 1:
        raise AutoLRError("--combine: all adapters must be of one base model")
    changes = {look.label: look.change for look in result.looks}
    first, *basic = [(label, change) for label, change in changes.items() if change]
    combination = combine(first[1], dict(basic), [look.change for look in strangers if look.change], kind, seed)
    shares = {weight.task: weight.share.mean for weight in combination.weights}
    return Heads(result.looks, kind, combination, mixture(shares, combine_for))


def _labelled(looks: Sequence[Look]) -> list[Look]:
    """Give looks of one name a number each."""
    seen: Counter[str] = Counter()
    numbered = []
    for look in looks:
        seen[look.label] += 1
        count = seen[look.label]
        numbered.append(replace(look, label=f"{look.label} ({count})") if count > 1 else look)
    return numbered


def _arm(given: str | Path | Recipe) -> Arm | None:
    """Return a trained adapter; None where a model is named."""
    if isinstance(given, Recipe):
        raise RunError("heads looks at models and trained adapters; train the recipe first: autolr train")
    path = Path(given).expanduser()
    for folder in (path, path / "adapter", path / "train"):
        if (folder / ADAPTER).is_file() or (folder / "adapter" / ADAPTER).is_file():
            return read_arm(folder)
    if (path / "recipe.yaml").is_file() or (path / "study.yaml").is_file():
        raise RunError(f"{path}: holds no trained adapter yet; train it: autolr train {path}/recipe.yaml")
    return None


@dataclass(frozen=True)
class _Sampler:
    """Takes samples for models and adapters; the fields are arguments of `heads`."""

    data: Data | None
    task: TaskName
    samples: int
    model: str | None
    seed: int
    device: torch.device

    def look(self, given: str | Path | Recipe) -> Look:
        """Look at a model, or at an adapter before and after its training."""
        arm = _arm(given)
        with quiet():
            problem, rows, source = self.load(arm, str(given))
            base, task = problem.backbone, problem.task
            before = activations.measure(base, task, rows)
            entropy = attention_probs.entropies(base, rows)[1].mean(0).numpy()
            if arm is None:
                return Look(base.source, base.source, source, before, None, entropy, None)
            tuned = trained_adapters.load(arm, base)
            after = activations.measure(base, task, rows, tuned)
            entropy_after = attention_probs.entropies(base, rows, tuned)[1].mean(0).numpy()
        return Look(arm.label, base.source, source, before, after, entropy, entropy_after)

    def load(self, arm: Arm | None, name: str) -> tuple[Unsplit, TokenSet, str]:
        """Return the base with the head that training starts from, the samples, and where they are from."""
        recipe = arm.recipe if arm else None
        if recipe is not None and self.data is None:
            exact = recipe.training.model_copy(update={"precision": "fp32"})
            problem = load_problem(recipe.model_copy(update={"training": exact}), self.device)
            rows, source = self._of_splits(problem.data), recipe.data.source
            self._start_head(problem.backbone, recipe.seed)
            return problem, rows, source
        if self.data is None:
            raise DataError(f"{name}: on which data? Give --data, a file or a hub data set")
        study = Study(
            model=self.model or (recipe.model if recipe else base_model(arm) if arm else name),
            data=self.data,
            task=recipe.task if recipe else self.task,
            training=Training(precision="fp32"),
        )
        examples = load_examples(study).ordered(recipe.classes, whose=name) if recipe else None
        unsplit = load_unsplit(study, self.device, examples=examples)
        tokens, kept = _tokens(unsplit.examples, self.data, unsplit.backbone)
        self._start_head(unsplit.backbone, recipe.seed if recipe else self.seed)
        return unsplit, _some(tokens.take(kept), self.samples, self.seed), self.data.source

    def _of_splits(self, data: Prepared) -> TokenSet:
        """Return samples of *test*, and if it is too small of *validation*."""
        rows = _some(data.test, self.samples, self.seed)
        if len(rows) == self.samples:
            return rows
        more = _some(data.validation, self.samples - len(rows), self.seed)
        return TokenSet(rows.ids + more.ids, rows.labels + more.labels, rows.pad_id)  # type: ignore[operator, arg-type]

    @staticmethod
    @torch.no_grad()
    def _start_head(base: Backbone, seed: int) -> None:
        parameters = base.head_parameters()
        for name, value in fresh_head(base, seed).items():
            parameters[name].copy_(value)


def _tokens(examples: Examples, data: Data, base: Backbone) -> tuple[TokenSet, list[int]]:
    """Return the tokens of all examples, and which examples have some."""
    length = min(data.max_length, base.max_length or data.max_length)
    tokens, _ = token_set(examples, base.tokenizer, length, base.max_length)
    return tokens, [row for row, own in enumerate(tokens.ids) if own]


def _some(data: TokenSet, count: int, seed: int) -> TokenSet:
    """Return some examples, drawn by the seed; all of them where there are no more."""
    order = np.random.default_rng([seed, 13]).permutation(len(data))[:count]
    return data.take(sorted(int(row) for row in order))


def chosen(
    name: str,
    target: str | Data,
    pool: str | Data,
    count: int,
    *,
    task: TaskName = "classification",
    samples: int = SAMPLES,
    seed: int = 0,
    device: str | None = None,
) -> list[int]:
    """Return the rows of a pool whose use of the heads is nearest that of a target task, from 0 as in its source.

    Args:
        name: the model.
        target: data of the target task, of which at most `samples` are looked at.
        pool: data to choose from, of the same classes or of texts that are learned.
        count: how many to take.
        task: of both.
        samples: of the target.
        seed: of which of them.
        device: such as `cpu` or `cuda:0`.

    Raises:
        AutoLRError: the data cannot be read, or the pool is smaller than `count`.
        ModelError: the model cannot be looked at.
    """
    wanted, offered = (Data(source=source) if isinstance(source, str) else source for source in (target, pool))
    sampler = _Sampler(wanted, task, samples, None, seed, choose_device(device))
    with quiet():
        problem, rows, _ = sampler.load(None, name)
        base, judge = problem.backbone, problem.task
        examples = sources.load(offered, task).ordered(list(judge.classes), whose=wanted.source)
        tokens, kept = _tokens(examples, offered, base)
        pool_use, target_use = (
            activations.measure(base, judge, part).absolutes for part in (tokens.take(kept), rows)
        )
    of_source = examples.rows or range(len(examples))  # rows that were left out count there
    return [of_source[kept[row]] for row in nearest(pool_use, target_use, count)]
