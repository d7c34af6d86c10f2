"""Files from strangers: none runs code, reads what it should not, shows a secret, or writes into a page."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import zipfile
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
import torch

from autolr import cli
from autolr.abtest.compare import compare
from autolr.data import sources
from autolr.errors import AutoLRError, DataError, DocumentError, ModelError, redacted
from autolr.finetune.resume import last_checkpoint
from autolr.finetune.run import train
from autolr.model import backbone
from autolr.report import dashboard, page
from autolr.report.comparison import render as render_comparison
from autolr.rundir.folder import RunFolder
from autolr.schema.data import Data
from autolr.schema.recipe import Cost, Evidence, Recipe
from autolr.schema.study import Study
from autolr.tuner.dry_run import plan
from autolr.tuner.run import search
from tests.finetune.test_run import recipe  # noqa: F401 (a fixture)
from tests.report import made

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuv",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "PGPASSWORD": "s3cr3t-pg-pw",
}
REMOTE = """
from pathlib import Path
from transformers import AutoModel, LlamaConfig, LlamaForSequenceClassification, LlamaModel
Path({ran!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaModel):
    config_class = OwnConfig
AutoModel.register(OwnConfig, OwnModel, exist_ok=True)
class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig
"""


class Bomb:
    """A pickle that leaves a file behind where it is loaded."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self):
        return Path.touch, (self.ran,)


def refused(arguments: list[str], capsys) -> str:
    """Run the command line and return its one message."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and "Traceback" not in said, said
    return said


# Pickles.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_of_pickles_is_not_loaded(model_folders, tmp_path, name):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model_folders["bert"], folder)
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(ran), folder / name)
    with pytest.raises(ModelError, match="pickles.*never loaded"):
        backbone.load(str(folder), ["a", "b"])
    assert not ran.exists()


def test_an_adapter_of_pickles_and_one_that_names_a_module_are_not_loaded(tmp_path, recipe, monkeypatch):  # noqa: F811
    ran = tmp_path / "ran"
    done = train(recipe, tmp_path / "run", device="cpu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil_core.py").write_text(f"open({str(ran)!r}, 'w')")
    for name in ("bin", "module"):
        shutil.copytree(done.adapter, name)
    (Path("bin") / "adapter_model.safetensors").unlink()
    torch.save(Bomb(ran), Path("bin") / "adapter_model.bin")
    config = json.loads((done.adapter / "adapter_config.json").read_text())
    (Path("module") / "adapter_config.json").write_text(
        json.dumps({**config, "megatron_config": {"a": 1}, "megatron_core": "evil_core"})
    )
    for name, reason in (("bin", "pickles"), ("module", "names code")):
        with pytest.raises(ModelError, match=reason):
            compare([name, done.adapter], data=recipe.data, model=recipe.model, out=f"ab-{name}", device="cpu")
    assert not ran.exists()


def test_a_checkpoint_that_holds_more_than_tensors_is_passed_over(tmp_path):
    folder, ran = tmp_path / "checkpoints" / "checkpoint-5", tmp_path / "ran"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    for name in ("scheduler.pt", "rng_state.pth"):
        torch.save({"a": 1}, folder / name)
    torch.save({"a": 1}, folder / "optimizer.pt")
    assert last_checkpoint(folder.parent) == str(folder)
    torch.save(Bomb(ran), folder / "optimizer.pt")
    assert zipfile.is_zipfile(folder / "optimizer.pt")
    assert last_checkpoint(folder.parent) is None
    assert not ran.exists()


@pytest.mark.parametrize("reader", ["pandas", "text", "csv", "json", "webdataset"])
def test_the_name_of_a_reader_does_not_read_what_lies_here(in_folder, reader):
    (in_folder / "train.pkl").write_bytes(pickle.dumps(Bomb(in_folder / "ran")))
    (in_folder / "train.txt").write_text("secret\n" * 50)
    with pytest.raises(DataError, match="neither a local file nor the id of a hub data set"):
        sources.load(Data(source=reader))
    assert not (in_folder / "ran").exists()


def test_a_folder_with_a_script_and_a_pickle_called_csv_are_no_data(tmp_path):
    ran, folder = tmp_path / "ran", tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(ran)!r}, 'w')")
    (folder / "train.pkl").write_bytes(pickle.dumps(Bomb(ran)))
    (tmp_path / "d.csv").write_bytes(pickle.dumps(Bomb(ran)))
    (tmp_path / "d.pkl").write_bytes(pickle.dumps(Bomb(ran)))
    for source in (folder, tmp_path / "d.csv", tmp_path / "d.pkl"):
        with pytest.raises(DataError):
            sources.load(Data(source=str(source)))
    assert not ran.exists()


# Code of models.


@pytest.fixture
def model_with_code(model_folders, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A llama whose classes come with it, and the file that they leave behind when they are imported."""
    folder, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(model_folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own-llama", "architectures": ["OwnForSequenceClassification"]}
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(REMOTE.format(ran=str(ran)))
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    return str(folder), ran


def test_code_of_a_model_runs_where_study_and_command_line_both_say_so(small_study, model_with_code, tmp_path):
    folder, ran = model_with_code
    quiet = small_study.model_copy(update={"model": folder})
    asking = quiet.model_copy(update={"trust_remote_code": True})
    with pytest.raises(ModelError, match="Python code of its own, which is not run"):
        plan(quiet, "cpu")
    with pytest.raises(AutoLRError, match=r"give --trust-remote-code as well"):
        plan(asking, "cpu")
    with pytest.raises(AutoLRError, match="must ask for the code"):
        plan(quiet, "cpu", trust_remote_code=True)
    assert not ran.exists()
    assert plan(asking, "cpu", trust_remote_code=True).coverage == "q and v in 2 of 2 layers"
    assert ran.exists()
    # What trains and compares the recipe has to be told as well.
    budget = asking.budget.model_copy(update={"trials": 4})
    done = search(
        asking.model_copy(update={"budget": budget}), tmp_path / "run", device="cpu", trust_remote_code=True
    )
    assert done.recipe.trust_remote_code
    for call in (
        lambda: train(done.recipe, tmp_path / "full", device="cpu"),
        lambda: compare([done.recipe], vary=["ratio=1"], out=tmp_path / "ab", device="cpu"),
    ):
        with pytest.raises(AutoLRError, match=r"give --trust-remote-code as well"):
            call()
    assert train(done.recipe, tmp_path / "full", device="cpu", trust_remote_code=True).adapter.is_dir()


def test_code_of_a_tokenizer_is_not_run_and_attention_not_fetched(model_folders, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model_folders["bert"], folder)
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**told, "auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"})
    )
    with suppress(ModelError):
        backbone.load(str(folder), ["a", "b"])
    assert not ran.exists()
    shutil.rmtree(folder)
    shutil.copytree(model_folders["bert"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    with pytest.raises(ModelError, match="someone/kernel"):
        backbone.load(str(folder), ["a", "b"])
    assert backbone.load(str(folder), ["a", "b"], attention="sdpa").precision == "fp32"


# Study and recipe files.

TAGS = (
    "!!python/object/apply:os.system ['touch ran']",
    "!!python/object/new:os.system ['touch ran']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!include /etc/passwd",
    "!ENV ${HOME}",
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("verb", ["search", "train", "compare", "override"])
def test_tags_of_documents_do_nothing(in_folder, capsys, tag, verb):
    Path("f.yaml").write_text(f"model: {tag}\ndata: d.csv\nname: n\n")
    words = {"compare": ["compare", "f.yaml", "f.yaml"], "override": ["search", f"model={tag}"]}
    said = refused(words.get(verb, [verb, "f.yaml"]), capsys)
    assert "is not" in said and "root:" not in said and os.environ["HOME"] not in said
    assert not Path("ran").exists()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "more than 20,000 values"),
        ("model: &m [*m]\ndata: d\n", "more than 20,000 values"),
        ("model: " + "[" * 20_000, "is not YAML"),
        ("? [a, b]\n: c\nmodel: m\n", "a key that is no word"),
        ("model: m\ndata: d\nseed: 2020-99-99\n", "is not YAML"),
        ("model: m\ndata: d\nseed: 0x" + "f" * 9000 + "\n", "seed"),
        ("x" * 2_000_000, "no study or recipe is so long"),
    ],
    ids=["aliases", "itself", "deep", "key", "date", "digits", "long"],
)
def test_documents_that_would_never_end(in_folder, text, reason):
    Path("f.yaml").write_text(text)
    for kind in (Study, Recipe):
        with pytest.raises(DocumentError, match=reason if kind is Study or reason != "seed" else "missing"):
            kind.load("f.yaml")


def test_a_pipe_is_no_document_and_no_data(in_folder):
    os.mkfifo("study.yaml")
    os.mkfifo("d.csv")
    with pytest.raises(DocumentError, match="no ordinary file"):
        Study.load("study.yaml")
    with pytest.raises(DataError, match="no ordinary file"):
        sources.load(Data(source="d.csv"))


def test_a_metric_of_code_is_not_imported(small_study, recipe, in_folder, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(str(in_folder))
    Path("evil_metric.py").write_text("open('ran', 'w')\nscore = lambda a, b: 0.0\n")
    metric = "evil_metric:score"
    for call in (
        lambda: plan(small_study.model_copy(update={"metric": metric}), "cpu"),
        lambda: train(recipe.model_copy(update={"metric": metric}), "full", device="cpu"),
        lambda: compare([recipe.model_copy(update={"metric": metric})], vary=["ratio=1"], out="ab", device="cpu"),
    ):
        with pytest.raises(AutoLRError, match="--allow-code"):
            call()
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/b", "..", ".hidden", "a\nb", EVIL])
def test_names_are_no_paths_and_no_markup(recipe, name):  # noqa: F811
    with pytest.raises(DocumentError, match="name"):
        Study.load(written({"model": "m", "data": "d", "name": name}))
    with pytest.raises(DocumentError, match="name"):
        Recipe.load(written({**recipe.model_dump(mode="json"), "name": name}))


def written(content: dict) -> Path:
    path = Path("document.yaml").absolute()
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever is written by a relative name is written here."""
    monkeypatch.chdir(tmp_path)


# Pages and notes.


class Elements(HTMLParser):
    """Counts elements, and attributes that run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] = self.found.get(tag, 0) + 1
        for name, value in attrs:
            assert not name.startswith("on") and "javascript:" not in (value or ""), (tag, name, value)


def hostile(result):
    """Return a search that says the worst wherever a stranger's files may say something."""
    labels = {r.label: f"{r.label} {EVIL}" for r in result.over_seeds}
    evidence = result.recipe.evidence
    scores = [score.model_copy(update={"label": labels[score.label]}) for score in evidence.scores]
    evil = result.recipe.model_copy(
        update={
            "classes": [EVIL, "</pre></details>" + EVIL],
            "model": EVIL,
            "data": result.recipe.data.model_copy(update={"source": EVIL, "text_column": EVIL}),
            "versions": {EVIL: EVIL},
            "commit": EVIL,
            "evidence": evidence.model_copy(update={"verdict": f"{EVIL}. {EVIL}", "scores": scores}),
        }
    )
    study = result.study.model_copy(update={"model": EVIL, "data": evil.data})
    repeats = [r.model_copy(update={"label": labels[r.label]}) for r in result.over_seeds]
    return type(result)(result.folder, study, result.trials, repeats, result.phases, evil)


def test_pages_show_what_strangers_say_as_it_is(tmp_path):
    plain = made.searched(tmp_path)
    (tmp_path / "machine.json").write_text(
        json.dumps({"device": EVIL, "precision": EVIL, "reason": EVIL, "slots": 1})
    )
    kind = Elements(page.render(plain)).found
    text = page.render(hostile(plain))
    more = Elements(text).found
    for name in ("p", "dt", "dd"):  # a line more about the commit, and one less where there is no surrogate
        assert abs(more.pop(name) - kind.pop(name)) <= 1
    assert more == kind
    assert EVIL not in text and "alert(1)" in text
    shown = hostile(plain)._repr_html_()
    assert EVIL not in shown and "script" not in Elements(shown).found and "img" not in Elements(shown).found


def test_the_page_of_a_comparison_shows_what_strangers_say_as_it_is(recipe, tmp_path):  # noqa: F811
    found = compare([recipe], vary=["ratio=1"], seeds=2, steps=2, out=tmp_path / "ab", device="cpu")
    kind = Elements(render_comparison(found)).found
    arms = [arm.model_copy(update={"label": EVIL, "setting": EVIL, "source": EVIL}) for arm in found.arms]
    pairs = [pair.model_copy(update={"label": EVIL}) for pair in found.pairs]
    evil = {"arms": arms, "pairs": pairs, "verdict": EVIL, "data": EVIL, "notes": [EVIL], "device": EVIL}
    text = render_comparison(found.model_copy(update=evil))
    more = Elements(text).found
    assert more.pop("p", 0) >= kind.pop("p", 0) and more.pop("h2") >= kind.pop("h2")  # the note
    assert more == kind and EVIL not in text


def test_notes_of_the_dashboard_show_what_strangers_say_as_it_is(tmp_path):
    result = hostile(made.searched(tmp_path))
    ill = "[x](javascript:alert(1)) ![](http://x) `a` **b** | c\n# d"
    result.recipe.evidence.scores[1].__dict__["label"] = ill
    notes = [dashboard._note(result), *dashboard._trial_notes(result).values()]
    for note in notes:
        for mark in ("<script", "<img", "](javascript", "![", "**b**", "`a`", "\n# d"):
            assert mark not in note, mark
    assert any("alert" in note for note in notes)


def test_a_model_card_shows_what_strangers_say_as_it_is(recipe):  # noqa: F811
    from autolr.finetune.card import model_card

    ill = f"`{EVIL}`\n| a | b |\n# c"
    evidence = Evidence(
        verdict=f"{EVIL}\n# c", trials={}, seeds=2, scores=[],
        cost=Cost(device_seconds=1, trained_tokens=1, evaluated_tokens=1, full_run_equivalents=1),
    )  # fmt: skip
    told = {"classes": [ill, "b"], "data": recipe.data.model_copy(update={"source": ill}), "evidence": evidence}
    evil = recipe.model_copy(update=told)
    scores = {"loss": 1.0, recipe.metric: 0.5}
    card = model_card(evil, {"best_step": 1, "validation": scores, "test": scores})
    assert "\n# c" not in card and "\n| a" not in card
    outside = "".join(part for line in card.split("```")[0].splitlines() for part in line.split("`")[::2])
    assert "alert" in outside and "<script" not in outside and "<img" not in outside


# Secrets.


def test_secrets_are_taken_out_of_messages(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = str(AutoLRError(f"postgresql://me:geheim@db:5432/a failed; {' '.join(SECRETS.values())}"))
    assert said == "postgresql://***@db:5432/a failed; <HF_TOKEN> <WANDB_API_KEY> <PGPASSWORD>"
    assert redacted("https://hf_aaaaaaaaaaaaaaaaaaaa@huggingface.co hf_bbbbbbbbbbbbbbbbbbbb") == (
        "https://***@huggingface.co <token>"
    )
    assert redacted("nothing@here, http://a/b@c, λ = 4") == "nothing@here, http://a/b@c, λ = 4"
    error = DocumentError("f", [f"given: {SECRETS['HF_TOKEN']}"])
    assert SECRETS["HF_TOKEN"] not in str(error) + "".join(error.problems)


def test_a_bug_shows_no_secret_either(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])

    def broken(*_):
        raise RuntimeError(f"server said: bad token {SECRETS['HF_TOKEN']} at mysql://me:pw@db")

    monkeypatch.setattr(cli.verbs.search.resolve, "resolve", broken)
    with pytest.raises(SystemExit) as stop:
        cli.main(["search"])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "Traceback" in said and "<HF_TOKEN>" in said
    assert SECRETS["HF_TOKEN"] not in said and "me:pw" not in said


def test_an_address_with_a_password_is_not_taken_into_documents(in_folder, capsys):
    for key in ("model", "data.source", "data.validation_split"):
        said = refused(["search", f"{key}=https://me:geheim@host/x"], capsys)
        assert "holds a password or token" in said and "geheim" not in said


def test_nothing_that_is_written_holds_a_secret(small_study, in_folder, monkeypatch, capsys):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    small_study.save("study.yaml")
    cli.app(
        ["search", "study.yaml", "budget.trials=4", "--out", "run", "--train", "--device", "cpu"],
        standalone_mode=False,
    )
    said = capsys.readouterr()
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert {"recipe.yaml", "report.html", "resources.parquet", "metrics.json"} <= {path.name for path in files}
    resources = pd.read_parquet("run/resources.parquet").to_csv()
    texts = [said.out.encode(), said.err.encode(), resources.encode(), *(path.read_bytes() for path in files)]
    for value in SECRETS.values():
        assert not any(value.encode() in text for text in texts)


# Servers.


def test_the_dashboard_listens_on_this_machine_alone(tmp_path, small_study):
    folder = RunFolder(search(small_study, tmp_path / "run", device="cpu").folder)
    bound = []

    def look(address):
        port = urlsplit(address).port
        bound.append(address)
        own = next((a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)), "127.0.0.1")
        if not own.startswith("127."):
            with socket.socket() as other, pytest.raises(OSError):
                other.settimeout(2)
                other.connect((own, port))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dashboard.serve(folder, "127.0.0.1", 0, look)
    assert bound[0].startswith("http://127.0.0.1:")
    import inspect

    from autolr.cli.verbs.dashboard import dashboard as verb

    assert inspect.signature(verb).parameters["host"].default == "127.0.0.1"
