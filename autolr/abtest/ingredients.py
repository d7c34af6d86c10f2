"""The adapters of a merge: where they are, what they were trained for, and whether they go together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autolr.abtest.arms import ADAPTER, Arm, base_model, distinct, read_arm
from autolr.errors import DocumentError, ModelError, RunError
from autolr.merging import compatible
from autolr.merging.adapter import WEIGHTS, Adapter
from autolr.merging.greedy import Choice
from autolr.model import meta_model
from autolr.model.adapters import base_place
from autolr.schema.data import LANGUAGE, TaskName

Rank = int | Literal["auto", "exact"]


@dataclass(frozen=True)
class Ingredients:
    """The adapters of a merge, read and checked.

    Attributes:
        arms: where they are, and what they were trained by.
        held: what their folders hold.
        digests: sha256 of their weights.
        model: base model of all; None: what they name.
    """

    arms: list[Arm]
    held: list[Adapter]
    digests: list[str]
    model: str | None

    @classmethod
    def read(cls, adapters: Sequence[str | Path], model: str | None, rank: Rank) -> Ingredients:
        """Read adapters.

        Raises:
            DocumentError: lists all that forbids their merge.
        """
        arms = _arms(adapters, rank)
        held, unread = [], []
        for arm in arms:
            try:
                held.append(Adapter.read(folder_of(arm), arm.label))
            except ModelError as error:
                unread.append(str(error))
        if unread:
            raise DocumentError("merge", unread)
        wrong = [*compatible.problems(held, model), *_other_recipes(arms), *_other_configs(arms, model)]
        if held[0].kind == "full" and isinstance(rank, int):
            wrong.append(f"--rank {rank}: these adapters hold whole matrices, which have no rank. Leave --rank out")
        if wrong:
            raise DocumentError("merge", wrong)
        digests = [hashlib.sha256((folder_of(arm) / WEIGHTS).read_bytes()).hexdigest() for arm in arms]
        return cls(arms, held, digests, model)

    @property
    def base(self) -> str:
        """The base model's place."""
        return self.model or base_model(self.arms[0])

    @property
    def reference(self) -> Arm:
        """The first adapter that says what it was trained by; without one, the first adapter."""
        return next((arm for arm in self.arms if arm.recipe is not None), self.arms[0])

    def default_folder(self) -> Path:
        """Return the folder of the result if none is given: the same adapters, the same folder."""
        return Path("runs") / f"merge-{hashlib.sha256(''.join(sorted(self.digests)).encode()).hexdigest()[:8]}"

    def task(self, wanted: TaskName | None) -> TaskName:
        """Return what the adapters were trained for.

        Raises:
            RunError: it cannot be known, or it is another task than the wanted one.
        """
        recipe = self.reference.recipe
        if recipe is not None and wanted not in (None, recipe.task):
            raise RunError(f"--task {wanted}: these adapters were trained for {recipe.task}. Leave --task out")
        if recipe is not None:
            return recipe.task
        of_language = self.held[0].config.get("task_type") == "CAUSAL_LM"
        if wanted is None and of_language:
            raise RunError(
                f"{self.arms[0].source}: is an adapter of a language model without a recipe. Say what the data is: "
                "--task sft for prompts and chats, --task lm for texts"
            )
        if wanted is not None and of_language != (wanted in LANGUAGE):
            raise RunError(
                f"--task {wanted}: these adapters have the task type {self.held[0].config.get('task_type')}. Choose "
                f"{'sft or lm' if of_language else 'classification or regression'}"
            )
        return wanted or "classification"

    def notes(self, choice: Choice) -> list[str]:
        """Return what is to be known of the adapters' first values: the best one's and the others'."""
        first, *rest = (tried.index for tried in choice.tried)
        notes = []
        for index in rest:
            names = f"{self.arms[index].label} and {self.arms[first].label}"
            cosine = compatible.relation(self.held[first], self.held[index])
            recipes = self.arms[first].recipe, self.arms[index].recipe
            if cosine is not None and cosine < compatible.RELATED:
                notes.append(
                    f"{names} began with different first values: their A's have a cosine of {cosine:.2f}. Averages "
                    "of such adapters seldom help"
                )
            elif cosine is None and (None in recipes or recipes[0].seed != recipes[1].seed):  # type: ignore[union-attr]
                notes.append(f"whether {names} began with the same first values is not known. Averages need them")
        return notes


def _arms(adapters: Sequence[str | Path], rank: Rank) -> list[Arm]:
    """Find the adapters.

    Raises:
        DocumentError: lists all that is wrong.
    """
    problems, arms = [], []
    if isinstance(rank, int) and rank < 1:
        problems.append(f"--rank {rank}: must be at least 1, auto or exact")
    if len(adapters) < 2:
        problems.append(f"{len(adapters)} adapter given: a merge needs two. Give the folder of another adapter")
    for given in adapters:
        path = Path(given)
        folder = next((one for one in (path, path / "train") if _is_adapter(one)), None)
        if folder is None:
            what = "holds no trained adapter (adapter_config.json)" if path.is_dir() else "is no folder"
            problems.append(f"{given}: {what}. Give a trained adapter, a full run, or a run folder with a full run")
        else:
            arms.append(read_arm(folder))
    places = [folder_of(arm).resolve() for arm in arms]
    twice = [arm.source for number, arm in enumerate(arms) if places[number] in places[:number]]
    problems += [f"{source}: is given twice. Give each adapter once" for source in twice]
    if problems:
        raise DocumentError("merge", problems)
    return distinct(arms)


def _is_adapter(folder: Path) -> bool:
    return any((one / ADAPTER).is_file() for one in (folder, folder / "adapter"))


def folder_of(arm: Arm) -> Path:
    """Return the folder of a trained adapter."""
    assert arm.adapter is not None
    return arm.adapter


def _other_recipes(arms: Sequence[Arm]) -> list[str]:
    """Return what forbids a merge by the adapters' recipes, as far as they have them."""
    known = [(arm, arm.recipe) for arm in arms if arm.recipe is not None]
    problems = []
    for arm, recipe in known[1:]:
        first, reference = known[0]
        for name in ("task", "classes", "model_fingerprint"):
            own, other = getattr(recipe, name), getattr(reference, name)
            if own != other and None not in (own, other):
                problems.append(
                    f"{arm.label}: its recipe has {name} {own}, that of {first.label} {other}. Merge adapters of one "
                    "base and task"
                )
    return problems


def _other_configs(arms: Sequence[Arm], model: str | None) -> list[str]:
    """Return which adapters name a base whose configuration is not that of the base given instead."""
    if model is None:
        return []
    problems, own = [], config_digest(model)
    for arm in arms:
        named = base_model(arm)
        other = own if base_place(named) == base_place(model) else config_digest(named)
        if other != own and None not in (other, own):
            problems.append(
                f"{arm.label}: its base model {named} has another configuration than --model {model}. Merge adapters "
                "of one base"
            )
    return problems


def config_digest(model: str) -> str | None:
    """Return a sha256 over a base model's configuration without its place and versions; None if it cannot be read."""
    try:
        content = meta_model.config_of(model).to_dict()
    except ModelError:  # it is not on this machine, or has code of its own
        return None
    kept = {name: value for name, value in content.items() if name not in ("_name_or_path", "transformers_version")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
