"""The section `data`, and the tasks and metrics that a study may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from autolr.schema.fields import Place
from autolr.schema.yaml_io import Document

TaskName = Literal["classification", "regression", "sft", "lm"]
# Tasks of language models, which get no head: the tokens of a text, or of its completion, are what is learned.
LANGUAGE: tuple[TaskName, ...] = ("sft", "lm")
# A metric of AutoLR's, or the user's own: `my_module:function`.
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class Data(Document):
    """Where the examples come from and how they are split.

    One table is split into *train*, *validation* (pruning and choosing) and *test* (the numbers
    a user is told), stratified by label, or by length where texts are learned; a text that occurs twice
    stays on one side. Validation and test may also be splits or files of their own.
    """

    RENAMED = {
        "select": "validation",
        "confirm": "test",
        "select_split": "validation_split",
        "confirm_split": "test_split",
        "most": "max_eval_samples",
    }

    source: Place = Field(
        description="demo:rotten-tomatoes, a csv/tsv/json/jsonl/parquet/arrow file, a folder datasets saved, or a "
        "hub data set",
    )
    subset: str | None = Field(None, description="configuration of a hub data set, such as sst2 of glue")
    split: str = Field("train", description="split of a hub data set or of a saved DatasetDict")
    validation_split: Place | None = Field(
        None, description="split or file whose examples are validation; none: cut from train"
    )
    test_split: Place | None = Field(None, description="split or file whose examples are test; none: cut from train")
    text_column: str | None = Field(None, description="found by itself where unambiguous")
    pair_column: str | None = Field(None, description="second text of pairs; found by itself under usual names")
    label_column: str | None = Field(None, description="found by itself where unambiguous")
    prompt_column: str | None = Field(None, description="of sft; found by itself under usual names")
    completion_column: str | None = Field(None, description="of sft; found by itself under usual names")
    messages_column: str | None = Field(None, description="chats of sft; found by itself under usual names")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the examples for choosing")
    test: float = Field(0.15, gt=0, lt=1, description="share of the examples for judging")
    max_eval_samples: int = Field(
        2000, ge=2, description="examples of validation, and of test, are no more than this"
    )
    max_length: int = Field(128, ge=4, le=2**24, description="tokens kept of a text")

    @model_validator(mode="after")
    def _leaves_something(self) -> Data:
        if self.validation + self.test > 0.8:
            raise ValueError(
                f"validation ({self.validation:g}) and test ({self.test:g}) leave less than 0.2 for training"
            )
        return self
