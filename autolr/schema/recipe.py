"""The recipe: what a search returns and a full run consumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import Field, model_validator

from autolr import display
from autolr.errors import DocumentError
from autolr.schema import yaml_io
from autolr.schema.candidate import Candidate
from autolr.schema.data import Data, MetricName, TaskName
from autolr.schema.fields import Name, Place
from autolr.schema.method import Method
from autolr.schema.space import NO_HEAD_RATES, Rate, Role
from autolr.schema.training import MOST_STEPS, Training
from autolr.schema.yaml_io import Document


class Rates(Document):
    """The rate of each role; a role that stays frozen is absent. `b` holds those of LoRA+'s B, where they differ."""

    REMOVED = {"heads": (({},), NO_HEAD_RATES)}

    q: Rate | None = None
    v: Rate | None = None
    head: Rate | None = None
    k: Rate | None = None
    o: Rate | None = None
    mlp: Rate | None = None
    b: dict[Role, Rate] = {}

    def trained(self) -> dict[Role, float]:
        """Return the roles that are trained, and their rates."""
        rates: dict[Role, float | None] = {role: getattr(self, role) for role in get_args(Role)}
        return {role: rate for role, rate in rates.items() if rate is not None}

    def describe(self) -> str:
        """Return the rates in a few words, such as `lr_q=1.5e-03 lr_v=2.4e-03 lr_head=5.2e-03`."""
        text = [f"lr_{role}={rate:.2e}" for role, rate in self.trained().items()]
        return " ".join([*text, *(f"lr_{role}_B={rate:.2e}" for role, rate in self.b.items())])


class Interval(Document):
    """An estimate with the bounds of its 90 % confidence interval."""

    mean: float
    low: float
    high: float


class Score(Document):
    """Scores of a candidate, the mean over seeds: lower loss is better."""

    RENAMED = {
        "select_loss": "validation_loss",
        "confirm_loss": "test_loss",
        "confirm_metric": "test_metric",
    }

    label: str = Field(description="finalist 1, default, same_lr, paper, with_k, ...")
    candidate: Candidate
    validation_loss: float = Field(description="for choosing")
    test_loss: float
    held_out_loss: float | None = Field(
        None, description="of validation, and of the last batches before they are learned: what chose the winner"
    )
    test_metric: float = Field(description="accuracy, or the study's own metric")
    diverged: int = Field(0, description="trainings that diverged; the losses above include them")
    gain: Interval | None = Field(
        None, description="test loss of this candidate minus the winner's: above 0, the winner is better"
    )

    @property
    def chosen_by(self) -> float:
        """The loss by which it was compared with others."""
        return self.validation_loss if self.held_out_loss is None else self.held_out_loss


class Cost(Document):
    """What the search has cost."""

    device_seconds: float
    trained_tokens: int
    evaluated_tokens: int
    full_run_equivalents: float = Field(description="trained tokens / the trained tokens of one full run")


class Evidence(Document):
    """Why this recipe: the verdict, the scores behind it, and what they cost."""

    RENAMED = {"repeats": "seeds"}

    verdict: str
    trials: dict[str, int] = Field(description="total, finished, pruned, diverged; infeasible where there are any")
    seeds: int = Field(description="seeds of each candidate in the verdict")
    finals: list[Score] = Field(
        [], description="at the end of the full run, one seed each, the best first: they chose the winner"
    )
    scores: list[Score] = Field(description="of the trainings with several seeds")
    cost: Cost

    @property
    def finals_by(self) -> str:
        """What the winner was chosen by at the end of the full run, as the head of a column."""
        return "validation loss" if all(score.held_out_loss is None for score in self.finals) else "held-out loss"


class Recipe(Document):
    """Every setting of the full run, and the evidence for it."""

    format: int = Field(1, ge=1, le=1)
    name: Name
    model: Place
    trust_remote_code: bool = Field(
        False, description="run Python code that came with the model; needs --trust-remote-code as well"
    )
    model_fingerprint: str | None = Field(None, description="sha256 of the frozen weights; null: not checked")
    data: Data
    data_fingerprint: str | None = Field(None, description="sha256 of texts and labels; null: not checked")
    tokenizer_fingerprint: str | None = Field(
        None, description="sha256 of vocabulary, rules and chat template; null: not checked"
    )
    tokenization: int | None = Field(
        None, description="version of how AutoLR makes tokens of examples; null: not checked"
    )
    classes: list[str]
    task: TaskName = "classification"
    metric: MetricName = "accuracy"
    method: Method
    candidate: Candidate
    rates: Rates
    training: Training
    steps: int = Field(ge=1, le=MOST_STEPS, description="optimizer steps of the full run: the horizon")
    split_seed: int = Field(0, ge=0, description="of the three splits")
    seed: int = Field(0, ge=0, description="of adapter, head and data order")
    evidence: Evidence | None = None
    versions: dict[str, str] = {}
    commit: str | None = None

    @model_validator(mode="after")
    def _one_method(self) -> Recipe:
        if self.method.kind != [self.candidate.kind]:
            raise ValueError(
                f"method.kind {', '.join(self.method.kind)} is not what the candidate says, {self.candidate.kind}: "
                "a recipe trains one; write it in method.kind and in candidate.kind"
            )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe, from its file or from the folder that holds `recipe.yaml`.

        Raises:
            DocumentError: the file cannot be read, or is wrong; all its problems are listed.
        """
        path = Path(path)
        path = path / "recipe.yaml" if path.is_dir() else path
        content, text = yaml_io.read_yaml(path)
        if "candidate" not in content and "space" in content:
            raise DocumentError(str(path), [f"is a study, not a recipe; it becomes one by: autolr search {path}"])
        return yaml_io.validate(cls, content, str(path), text)

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML."""
        yaml_io.write_text(Path(path), self.to_yaml())

    def _repr_html_(self) -> str:
        """Return the recipe as a notebook shows it."""
        method = f"{self.method.kind}, alpha {self.method.lora_alpha:g}"
        rows = [
            ("model", self.model),
            ("data", self.data.source),
            *([("ratio λ", f"{self.candidate.ratio:.3g}")] if self.candidate.has_ratio else []),
            ("rates", self.rates.describe()),
            ("rank", self.candidate.rank),
            ("targets, method", f"{self.candidate.targets}, {method}"),
            ("steps", f"{self.steps}, batch {self.training.batch_size}"),
        ]
        return display.table(self.evidence.verdict if self.evidence else f"Recipe {self.name}", rows)

    def to_yaml(self) -> str:
        """Return the recipe as YAML text."""
        content: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        return yaml_io.to_yaml(content)
