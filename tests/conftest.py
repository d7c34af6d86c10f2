"""Shared fixtures: small models on disk, a small data file, a study over them. No network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores, and models this small are slower with more
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import csv
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from autolr.data import sources
from autolr.schema.candidate import Candidate
from autolr.schema.recipe import Rates, Recipe
from autolr.schema.study import Study
from studies.benchmarks.common import servers
from tests import tiny

if TYPE_CHECKING:
    from tests.simgpu import Gpu

GOOD = ["good", "fine", "great", "lovely", "superb", "warm"]
BAD = ["bad", "dull", "awful", "poor", "weak", "cold"]
OTHER = [f"word{number}" for number in range(30)]
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
CHAT = (
    "{% for m in messages %}{% if m.role == 'judge' %}{{ raise_exception('no judges') }}{% endif %}[CLS] "
    "{{ m.role }} {{ m.content }} [SEP] [MASK] {% endfor %}{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """Keep tokens of the tests out of the user's cache."""
    os.environ["AUTOLR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in one thread: matrices this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer_with(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words of the tests, a token each."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *OTHER])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", **special)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory) -> dict[str, str]:
    """A tiny BERT, Llama, GPT-2 and GPT-NeoX, saved as users save theirs; `lm` is a Llama as a language model."""
    folders = {}
    for family in ("bert", "llama", "gpt2", "gpt_neox"):
        folder = tmp_path_factory.mktemp("models") / family
        tiny.model(family).save_pretrained(folder)
        tokenizer_with(cls_token="[CLS]").save_pretrained(folder)
        folders[family] = str(folder)
    folder = tmp_path_factory.mktemp("models") / "lm"
    language = tiny.model("llama/lm")
    language.config.max_position_embeddings = 128
    language.save_pretrained(folder)
    tokenizer = tokenizer_with(eos_token="[SEP]")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return {**folders, "lm": str(folder)}


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    """A csv of 240 sentences that a word gives away."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(240):
            words = [*rng.sample(OTHER, rng.randrange(3, 9)), rng.choice(GOOD if row % 2 else BAD)]
            rng.shuffle(words)
            writer.writerow([" ".join(words), "good" if row % 2 else "bad"])
    return str(path)


# Trials of 12 steps, six of which train to half of the full run, and two of these to its end.
STAGES = [{"to": 12}, {"to": 0.5, "promote": 6}, {"to": 1.0, "promote": 2}]


@pytest.fixture(scope="session")
def small_study(model_folders, reviews) -> Study:
    """A study that takes a second or two."""
    return Study(
        name="small",
        model=model_folders["bert"],
        data={"source": reviews, "validation": 0.2, "test": 0.2},
        space={"lr_v": {"low": 2e-4, "high": 1e-1}, "ratio": {"low": 0.5, "high": 8}, "rank": [2, 4, 8]},
        training={"batch_size": 8, "horizon": {"steps": 24}},
        search={"stages": STAGES, "rungs": [4, 8], "prune_below": 0.1, "slots": 4, "seeds": 2},
        budget={"trials": 9},
    )


@pytest.fixture(scope="session")
def small_recipe(small_study) -> Recipe:
    """What a search of the small study could end in."""
    candidate = Candidate(lr_v=2e-2, ratio=4, rank=4)
    examples = sources.load(small_study.data)
    return Recipe(
        name="small",
        model=small_study.model,
        data=small_study.data,
        data_fingerprint=examples.fingerprint,
        classes=examples.classes,
        method=small_study.method,
        candidate=candidate,
        rates=Rates(q=candidate.lr_q, v=candidate.lr_v, head=1e-2),
        training=small_study.training,
        steps=24,
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL of its own."""
    yield from served("postgresql", "psycopg", "postgres")


@pytest.fixture(scope="session")
def mysql() -> Iterator[str]:
    """The address of an empty database of a MariaDB of its own."""
    yield from served("mysql", "pymysql", "mysql")


def served(kind: str, driver: str, extra: str) -> Iterator[str]:
    """Run a database's server; where it or its driver is not installed the test is skipped, and says so."""
    pytest.importorskip(driver, reason=f"{driver} is not installed (extra: {extra})")
    if servers.missing(kind):
        pytest.skip(servers.missing(kind))
    with servers.server(kind) as address:
        yield address


@pytest.fixture
def in_folder(tmp_path, monkeypatch) -> Path:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def make_gpu() -> Iterator[Callable[..., Gpu]]:
    """Return a function that opens simulated GPUs: `make_gpu(devices=2, limit=2**30)`; each call closes the last."""
    from tests.simgpu import Gpu  # it imports torch's compiler, which the other tests do without

    with ExitStack() as stack:

        def make(**options: int) -> Gpu:
            stack.close()
            return stack.enter_context(Gpu(**options))

        yield make


@pytest.fixture
def gpu(make_gpu) -> Gpu:
    """A machine with one simulated GPU."""
    return make_gpu()
