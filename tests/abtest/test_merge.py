"""A merge is scored as stock PEFT scores it, chosen on validation, judged on test, and refuses what does not fit."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from scipy import stats
from sklearn.metrics import accuracy_score, log_loss
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import autolr
from autolr import cli
from autolr.abtest.merge import merge
from autolr.data import sources
from autolr.data.splits import split
from autolr.errors import AutoLRError, DocumentError, RunError
from autolr.finetune.run import train
from autolr.merging.adapter import Adapter
from autolr.merging.card import merge_card
from autolr.schema.data import Data
from autolr.schema.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(small_recipe) -> Recipe:
    return small_recipe.model_copy(
        update={"training": small_recipe.training.model_copy(update={"precision": "fp32"})}
    )


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory) -> Path:
    """Run folders: `good` was trained; `up` and `down` lie around it and average to it; `far` is farther up."""
    folder = tmp_path_factory.mktemp("runs")
    good = train(recipe, folder / "good" / "train", device="cpu")
    for name, sign, size in (("up", 1, 1.0), ("down", -1, 1.0), ("far", 1, 5.0)):
        shutil.copytree(folder / "good", folder / name)
        moved(good.adapter, folder / name / "train" / "adapter", sign * size)
    return folder


def moved(source: Path, target: Path, size: float, start: int = 0) -> Path:
    """Write an adapter whose B's and head are moved in one direction."""
    adapter = Adapter.read(source, "")
    generator = torch.Generator().manual_seed(start)
    for name in sorted(adapter.tensors):
        noise = torch.randn(adapter.tensors[name].shape, generator=generator)
        adapter.tensors[name] += 0 if "lora_A" in name else size * noise
    adapter.save(target)
    return target


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory):
    """The merge of a run folder, a full run and an adapter, and the lines that it said."""
    lines: list[str] = []
    folders = [runs / "up", runs / "far" / "train", runs / "down" / "train" / "adapter"]
    out = tmp_path_factory.mktemp("out") / "merged"
    return autolr.merge(folders, out=out, rank="exact", device="cpu", on_log=lines.append), lines


def stock(folder: Path, recipe: Recipe, part: str):
    """Score an adapter with transformers and PEFT alone: labels, chances and loss of each example."""
    base = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=2, ignore_mismatched_sizes=True, dtype="float32"
    )
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = sources.load(recipe.data)
    rows = getattr(split(examples, recipe.data, recipe.training.batch_size, recipe.split_seed), part)
    chances = []
    with torch.no_grad():
        for row in rows:
            logits = model(**tokenizer(examples.texts[row], return_tensors="pt")).logits.double()
            chances.append(logits.softmax(-1)[0].numpy())
    labels = np.array([examples.labels[row] for row in rows])
    return labels, np.array(chances), -np.log(np.array(chances)[np.arange(len(labels)), labels])


def test_the_merge_scores_in_stock_peft_as_it_says(found, recipe):
    result, _ = found
    for part, own in (("validation", result.validation), ("test", result.test)):
        labels, chances, losses = stock(result.folder, recipe, part)
        assert own.loss == pytest.approx(log_loss(labels, chances), rel=1e-5)
        assert own.metric == accuracy_score(labels, chances.argmax(-1))
        assert own.examples == len(losses) == 48


def test_the_best_ingredients_are_taken_and_the_others_named(found):
    result, lines = found
    best, second, far = result.ingredients
    assert {best.label, second.label} == {"up", "down"} and result.taken == [best.label, second.label]
    assert best.validation_loss <= second.validation_loss and best.label == result.best
    assert second.merged_loss == pytest.approx(result.validation.loss, rel=1e-6)
    assert second.merged_loss < best.validation_loss
    assert far.label == "far" and not far.taken and far.merged_loss > second.merged_loss
    assert sum("average of" in line for line in lines) == 2
    assert [one.rank for one in result.ingredients] == [4, 4, 4] and result.rank == result.exact_rank == 8


def test_two_sides_of_an_adapter_average_to_it(found, runs):
    result, _ = found
    model = Adapter.read(result.folder, "merge")
    good = Adapter.read(runs / "good" / "train" / "adapter", "good")
    for module, (a, b) in model.factors().items():
        own = model.scaling(module) * model.tensors[b] @ model.tensors[a]
        a, b = good.factors()[module]
        expected = good.scaling(module) * good.tensors[b] @ good.tensors[a]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_the_gain_is_students_interval_of_the_paired_differences(found, runs, recipe):
    result, _ = found
    alone = runs / result.best / "train" / "adapter"
    difference = stock(alone, recipe, "test")[2] - stock(result.folder, recipe, "test")[2]
    interval = stats.ttest_1samp(difference, 0.0).confidence_interval(0.9)
    assert (result.gain.low, result.gain.high) == pytest.approx(tuple(interval), rel=1e-4, abs=1e-6)
    assert result.gain.mean == pytest.approx(result.test_best.loss - result.test.loss, abs=1e-9)
    assert result.gain.low > 0 and f"is better than {result.best}" in result.verdict


def test_what_the_folder_holds(found, runs):
    result, _ = found
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "merge.json"
    }  # fmt: skip
    assert json.loads((result.folder / "merge.json").read_text()) == json.loads(result.to_json())
    card = (result.folder / "README.md").read_text()
    assert "| up | " in card and "| far | " in card and result.verdict in card
    assert str(runs) not in card + result.to_json()  # no folder of this machine is published
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and config["base_model_name_or_path"].endswith("/bert")
    spectrum = result.singular_values["bert.encoder.layer.0.attention.self.query"]
    assert len(spectrum) == 8 and spectrum == sorted(spectrum, reverse=True)
    assert "up" in result._repr_html_()


def test_hostile_names_stay_text_in_the_card(found, recipe):
    result, _ = found
    evil = "x | y ` <img src=x>\n# {{ 7 * 7 }}"
    first = result.ingredients[0].model_copy(update={"label": evil})
    changed = result.model_copy(update={"ingredients": [first], "verdict": evil, "data": evil, "base": evil})
    front, text = merge_card(evil, changed, recipe).split("---\n")[1:3]
    assert yaml.safe_load(front)["base_model"] == evil
    assert "<img" not in text and "\n# {{" not in text and "49" not in text
    assert next(line for line in text.splitlines() if line.endswith("of all |")).count("|") == 5


def test_an_automatic_rank_is_the_smallest_that_costs_little(runs, tmp_path, recipe):
    folders = [runs / "up", runs / "down"]
    found = merge(folders, out=tmp_path / "auto", device="cpu")
    assert found.exact_rank == 8 and found.rank <= 4  # they lie around one adapter of rank 4
    exact = found.cuts[8]
    assert found.cuts[found.rank] == pytest.approx(found.validation.loss, rel=1e-6)
    assert found.cuts[found.rank] <= 1.001 * exact
    assert all(loss > 1.001 * exact for rank, loss in found.cuts.items() if rank < found.rank)
    labels, chances, _ = stock(found.folder, recipe, "test")
    assert found.test.loss == pytest.approx(log_loss(labels, chances), rel=1e-5)
    two = merge(folders, out=tmp_path / "two", rank=2, device="cpu")
    assert two.rank == 2 and two.cuts == {}
    again = merge(folders, out=tmp_path / "auto", device="cpu")  # the same adapters may be merged again
    assert again.to_json() == found.to_json()
    with pytest.raises(RunError, match="something else than a merge of these adapters"):
        merge([runs / "up", runs / "far"], out=tmp_path / "auto", device="cpu")


def test_all_are_taken_or_the_best_alone(runs, tmp_path):
    every = merge([runs / "far", runs / "good", runs / "up"], out=tmp_path / "all", every=True, device="cpu")
    assert every.taken == ["good", "up", "far"] and every.best == "good"
    assert every.validation.loss > every.validation_best.loss and "is worse than good" in every.verdict
    alone = merge([runs / "far", runs / "good"], out=tmp_path / "alone", device="cpu")
    assert alone.taken == ["good"] and alone.gain.mean == 0 and "the result is good" in alone.verdict
    held, good = (Adapter.read(path, "") for path in (alone.folder, runs / "good" / "train" / "adapter"))
    assert all(torch.equal(held.tensors[name], tensor) for name, tensor in good.tensors.items())


def test_an_adapter_without_numbers_is_left_out(runs, tmp_path):
    shutil.copytree(runs / "up", tmp_path / "broken")
    place = tmp_path / "broken" / "train" / "adapter"
    adapter = Adapter.read(place, "broken")
    name = next(name for name in adapter.tensors if "lora_B" in name)
    adapter.tensors[name][0] = float("nan")
    adapter.save(place)
    found = merge([tmp_path / "broken", runs / "up", runs / "down"], out=tmp_path / "out", device="cpu")
    record = found.ingredients[-1]
    assert record.label == "broken" and not record.taken and "diverged" in record.reason
    assert record.validation_loss is None and len(found.taken) == 2
    with pytest.raises(AutoLRError, match="validation loss nan. Its training diverged; leave it out"):
        merge([tmp_path / "broken", runs / "up"], out=tmp_path / "all", every=True, device="cpu")
    assert not (tmp_path / "all").exists()


def test_the_training_file_is_split_as_in_training(runs, tmp_path, recipe, reviews):
    folders = [runs / "up", runs / "down"]
    own = merge(folders, out=tmp_path / "own", device="cpu")
    same = merge(folders, data=reviews, out=tmp_path / "same", device="cpu")
    assert (same.validation, same.test) == (own.validation, own.test)
    other = tmp_path / "other.csv"
    lines = Path(reviews).read_text().splitlines()
    other.write_text("\n".join([lines[0], *(f"word1 {line}" for line in lines[1:])]) + "\n")
    found = merge(folders, data=str(other), out=tmp_path / "far", device="cpu")
    assert found.test.examples == found.validation.examples == 96  # four tenths each: nothing is trained on it


def test_whole_matrices_are_merged(recipe, tmp_path):
    method = recipe.method.model_copy(update={"kind": ["full"]})
    candidate = recipe.candidate.model_copy(update={"kind": "full", "rank": 0, "lr_v": 1e-3})
    whole = recipe.model_copy(update={"method": method, "candidate": candidate})
    good = train(whole, tmp_path / "good", device="cpu")
    for name, size in (("up", 0.5), ("down", -0.5)):
        shutil.copytree(good.folder, tmp_path / name)
        moved(good.adapter, tmp_path / name / "adapter", size)
    found = merge([tmp_path / "up", tmp_path / "down"], out=tmp_path / "out", device="cpu")
    assert found.kind == "full" and found.rank is None and len(found.taken) == 2
    assert found.test.loss == pytest.approx(good.test["loss"], rel=1e-4)
    labels, chances, _ = stock(found.folder, recipe, "test")
    assert found.test.loss == pytest.approx(log_loss(labels, chances), rel=1e-5)
    with pytest.raises(DocumentError, match="hold whole matrices, which have no rank"):
        merge([tmp_path / "up", tmp_path / "down"], rank=4, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_base_in_four_bits_is_not_touched(runs, tmp_path, recipe):
    """Over bitsandbytes' NF4 the merge is `good` as well, and its file the same as over the plain base."""
    four = recipe.model_copy(update={"training": recipe.training.model_copy(update={"precision": "nf4"})})
    for name in ("up", "down", "good"):
        shutil.copytree(runs / name, tmp_path / name)
        four.save(tmp_path / name / "train" / "recipe.yaml")
    found = merge([tmp_path / "up", tmp_path / "down"], out=tmp_path / "out", rank="exact", device="cpu")
    same = merge([tmp_path / "good", tmp_path / "up"], out=tmp_path / "same", device="cpu")
    assert len(found.taken) == 2 and same.best == "good"
    assert found.test.loss == pytest.approx(same.test_best.loss, rel=1e-3)
    plain = merge([runs / "up", runs / "down"], out=tmp_path / "plain", rank="exact", device="cpu")
    assert plain.test.loss != found.test.loss  # the base was in four bits
    one, other = (Adapter.read(place, "").tensors for place in (found.folder, plain.folder))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def language(model_folders, tmp_path_factory):
    """Two adapters of a language model that stock PEFT has made, and prompts with completions."""
    folder = tmp_path_factory.mktemp("language")
    rows = [{"prompt": f"good word{n % 30}", "completion": f" word{n % 7} word{n % 5}"} for n in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model_folders["lm"])
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(folder / "start")
    moved(folder / "start", folder / "one", 0.1, 1)
    moved(folder / "start", folder / "two", 0.1, 2)
    return folder


def test_adapters_of_a_language_model_without_recipes(language, tmp_path):
    given = [language / "one", language / "two"]
    options = {"data": str(language / "prompts.jsonl"), "device": "cpu"}
    found = merge(given, task="sft", every=True, rank="exact", out=tmp_path / "out", **options)
    assert found.taken and found.rank == 4 and found.metric == "token_accuracy"
    assert any("is not known: it may contain these examples" in note for note in found.notes)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(json.loads((found.folder / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]),
        found.folder,
    ).eval()  # fmt: skip
    data = Data(source=options["data"], validation=0.4, test=0.4)
    examples = sources.load(data, "sft")
    tokenizer = AutoTokenizer.from_pretrained(found.folder)
    losses = []
    for row in split(examples, data, 1, 0).test:
        prompt = tokenizer(examples.texts[row])["input_ids"]
        whole = tokenizer(examples.texts[row] + examples.pairs[row])["input_ids"] + [tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + whole[len(prompt) :]
        with torch.no_grad():
            losses.append(float(model(input_ids=torch.tensor([whole]), labels=torch.tensor([labels])).loss))
    assert found.test.loss == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(RunError, match="--task sft for prompts and chats, --task lm for texts"):
        merge(given, **options)
    with pytest.raises(RunError, match="task type CAUSAL_LM. Choose sft or lm"):
        merge(given, task="regression", **options)
    with pytest.raises(RunError, match="--data"):
        merge(given, task="sft", device="cpu")


def test_adapters_of_a_fused_classifier_with_other_first_values(model_folders, reviews, tmp_path):
    """GPT-2's c_attn; the two began with other A's, which the report notices."""
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(
            model_folders["gpt2"], num_labels=2, ignore_mismatched_sizes=True, pad_token_id=1
        )
        config = LoraConfig(r=4, target_modules=["c_attn"], task_type="SEQ_CLS", fan_in_fan_out=True)
        model = get_peft_model(base, config)
        model.save_pretrained(tmp_path / str(seed))
    found = merge(
        [tmp_path / "1", tmp_path / "2"], data=reviews, every=True, rank="exact", out=tmp_path / "out", device="cpu"
    )
    assert any("began with different first values" in note for note in found.notes)
    assert any("the outputs are taken for bad, good, in this order" in note for note in found.notes)
    assert found.rank == 8 and np.isfinite(found.test.loss)


def test_all_that_is_wrong_with_what_was_given_is_told_at_once(runs, tmp_path):
    with pytest.raises(DocumentError) as error:
        merge([tmp_path / "missing", tmp_path], rank=0)
    assert "--rank 0" in str(error.value) and "missing: is no folder" in str(error.value)
    assert f"{tmp_path}: holds no trained adapter" in str(error.value)
    with pytest.raises(DocumentError, match="1 adapter given: a merge needs two"):
        merge([runs / "up"])
    with pytest.raises(DocumentError, match="is given twice"):
        merge([runs / "up", runs / "up" / "train"])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "adapter_config.json").write_text("{}")
    shutil.copytree(runs / "up" / "train" / "adapter", tmp_path / "y")
    (tmp_path / "y" / "adapter_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(DocumentError, match=r"(?s)2 problems.*no adapter configuration.*missing or damaged"):
        merge([tmp_path / "x", tmp_path / "y"])


def changed(source: Path, target: Path, **values) -> Path:
    """Copy an adapter, alone, with other settings."""
    shutil.copytree(source / "train" / "adapter", target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **values}))
    return target


def test_other_bases_tasks_and_kinds_are_refused(runs, tmp_path, model_folders, reviews, recipe):
    up = runs / "up"
    other = changed(up, tmp_path / "other", base_model_name_or_path=model_folders["llama"])
    dora = changed(up, tmp_path / "dora", use_dora=True)
    with pytest.raises(DocumentError, match="other: has the base model"):
        merge([up, other], data=reviews)
    with pytest.raises(DocumentError, match=r"another configuration than --model"):
        merge([up, other], data=reviews, model=model_folders["bert"])
    with pytest.raises(DocumentError, match="dora: is a DoRA adapter: its rows"):
        merge([up, dora], data=reviews)
    with pytest.raises(DocumentError, match=r"(?s)2 problems.*dora: is.*other: has the base model"):
        merge([up, dora, other], data=reviews)
    copy = shutil.copytree(model_folders["bert"], tmp_path / "copy")
    same = changed(up, tmp_path / "same", base_model_name_or_path=str(copy))
    shutil.copytree(runs / "down", tmp_path / "swapped")
    wrong = recipe.model_copy(update={"classes": recipe.classes[::-1]})
    wrong.save(tmp_path / "swapped" / "train" / "recipe.yaml")
    with pytest.raises(DocumentError, match=r"its recipe has classes \['good', 'bad'\]"):
        merge([up, tmp_path / "swapped"])
    with pytest.raises(RunError, match="--task sft: these adapters were trained for classification"):
        merge([up, runs / "down"], task="sft")
    found = merge([runs / "down", same], data=reviews, model=model_folders["bert"], out=tmp_path / "o", device="cpu")
    assert len(found.taken) == 2


def test_the_verb(runs, tmp_path, capsys):
    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["merge", *map(str, words)])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    code, out, _ = run(runs / "up", runs / "down", "--out", tmp_path / "m", "--device", "cpu", "--rank", "exact")
    assert code == 0 and "\nverdict     The merge of" in out and f"\nadapter     {tmp_path / 'm'}\n" in out
    assert "up: validation loss" in out and "\nrank        8; the exact average has 8" in out
    code, out, _ = run(runs / "up", runs / "down", "--out", tmp_path / "j", "--device", "cpu", "--all", "--json")
    content = json.loads(out)
    assert code == 0 and content["folder"] == str(tmp_path / "j") and len(content["ingredients"]) == 2
    for words, said in (
        ((runs / "up",), "1 adapter given"),
        ((runs / "up", tmp_path / "none"), "is no folder"),
        ((runs / "up", runs / "down", "--rank", "many"), "--rank many: is no rank"),
        ((runs / "up", runs / "down", "--rank", "-3"), "must be at least 1"),
        ((runs / "up", runs / "down", "--data", tmp_path / "no.csv"), "no.csv"),
        ((runs / "up", runs / "down", "--device", "quantum"), "--device quantum"),
    ):
        code, out, err = run(*words)
        assert code == 2 and said in err and err.startswith("error: ") and "Traceback" not in err, (words, err)
    assert not list(Path().glob("runs/merge-*"))
