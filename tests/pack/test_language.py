"""Language models: a slot learns what stock PEFT learns alone, and its loss is that of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from autolr.data.batches import TokenSet
from autolr.data.tasks import Language
from autolr.model import adapters
from autolr.model.sparse_logits import forward, watch
from autolr.pack.pack import Pack
from autolr.pack.slots import SlotConfig
from autolr.schema.training import Training
from tests import tiny

STEPS = 12
TRAINING = Training(batch_size=4, weight_decay=0.1, max_grad_norm=0.5)
TASK = Language(())
DATA = tiny.tokens(learned=True)
SLOTS = [
    SlotConfig({"q": 2e-3, "k": 0.0, "v": 8e-3, "head": 0.0}, rank=4, seed=1, steps=STEPS),
    SlotConfig({"q": 5e-2, "k": 0.0, "v": 1e-3, "head": 0.0}, rank=8, seed=2, steps=STEPS),
]


def alone(config: SlotConfig, order: list[list[int]], initial: dict) -> tuple[dict, list[float]]:
    """Train a stock PEFT language model on a slot's batches, by the loss of all its logits."""
    model = tiny.model("llama/lm", torch.float64)
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=config.rank, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora).double()
    adapters.set_values(model, initial)
    groups = [
        {
            "params": [p for name, p in model.named_parameters() if f".{role}_proj.lora" in name],
            "lr": config.rates[role],
        }
        for role in ("q", "v")
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=TRAINING.weight_decay)
    losses = []
    for step, rows in enumerate(order):
        batch = DATA.collate(rows)
        labels = batch.pop("labels")
        # What transformers computes, but for its rounding to float32.
        loss = functional.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        for group, role in zip(optimizer.param_groups, ("q", "v"), strict=True):
            group["lr"] = config.rates[role] * (STEPS - step) / STEPS
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING.max_grad_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return adapters.values_of(model), losses


@pytest.mark.parametrize(("together", "passes"), [(1, 2), (2, 1)])
def test_every_slot_equals_a_stock_run(together, passes):
    base = tiny.base("llama/lm", torch.float64)
    options = {"capacity": 2, "max_rank": 8, "lora_alpha": 16.0, "together": together, "passes": passes}
    with Pack(base, TRAINING, TASK, DATA, **options) as pack:
        slots = [pack.admit(config) for config in SLOTS]
        initial = [pack.initial_values(config) for config in SLOTS]
        for _ in range(STEPS):
            pack.step()
        packed = [(pack.values(slot), slot.losses, slot.order) for slot in slots]
        assert "head" not in {segment.role for segment in pack.layout.segments.values()}
    for config, first, (values, losses, order) in zip(SLOTS, initial, packed, strict=True):
        stock, stock_losses = alone(config, order, first)
        assert values.keys() == stock.keys()
        for name, value in values.items():
            assert torch.linalg.vector_norm(value - stock[name]) <= 1e-9 * torch.linalg.vector_norm(stock[name]), name
        assert losses == pytest.approx(stock_losses, rel=1e-9)
        assert max(losses) - min(losses) > 0.01  # it did train


@pytest.mark.parametrize("family", ["llama/lm", "gemma2/lm", "gpt2/lm", "cohere"])
def test_losses_are_those_of_transformers(family):
    model = tiny.base(family).model
    batch = DATA.collate(range(9))
    stock = model(**batch)
    logits = forward(model, batch)
    places = batch["labels"][:, 1:] != -100
    assert logits.shape == (int(places.sum()), tiny.VOCABULARY)  # no others are computed
    assert torch.allclose(logits, stock.logits[:, :-1][places], atol=1e-5)
    assert torch.allclose(TASK.batch_losses(logits, batch["labels"])[0], stock.loss, rtol=1e-5)
    one_by_one = [model(**DATA.collate([row])).loss for row in range(9)]
    assert torch.allclose(TASK.losses(logits, batch["labels"]), torch.stack(one_by_one), rtol=1e-4)


def test_scores_in_a_pack_are_those_of_the_tokens():
    base = tiny.base("llama/lm", torch.float64)
    with Pack(base, TRAINING, TASK, DATA, capacity=1, max_rank=8, lora_alpha=16.0) as pack:
        slot = pack.admit(SLOTS[0])
        pack.budget = replace(pack.budget, rows=5)
        losses, said = pack.evaluate([slot], DATA, averaged=False)
    batch = DATA.collate(range(len(DATA)))
    logits, targets = base.model(**{**batch, "labels": None}).logits[:, :-1], batch["labels"][:, 1:]
    right, learned = (logits.argmax(-1) == targets) & (targets != -100), targets != -100
    assert torch.allclose(said[0], (right.sum(1) / learned.sum(1)).double())
    assert TASK.score(said[0], DATA.labels) == pytest.approx(float(right.sum() / learned.sum()))
    each = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    assert torch.allclose(losses[0], each.sum(1) / learned.sum(1))
    mean = float(each.sum() / learned.sum())
    assert Language((), "perplexity").score(losses[0], DATA.labels) == pytest.approx(torch.tensor(mean).exp().item())


def test_an_exact_match_is_what_greedy_decoding_says():
    base = tiny.base("llama/lm", torch.float64)
    task = Language((), "exact_match")
    prompts = [ids[:2] for ids in DATA.ids]
    examples = []
    for number, prompt in enumerate(prompts):
        said = base.model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None)
        ids = said[0].tolist()
        examples.append(ids if number % 3 else [*ids[:-1], (ids[-1] + 1) % tiny.VOCABULARY])
    data = TokenSet(examples, [[-100, -100, *ids[2:]] for ids in examples], 1)
    batch = data.collate(range(len(data)))
    said = task.predictions(forward(base.model, batch), batch["labels"])
    assert [bool(share == 1) for share in said] == [bool(number % 3) for number in range(len(data))]
    assert task.score(said, data.labels) == pytest.approx(2 / 3, abs=0.03)


def test_an_own_metric_sees_the_tokens_of_each_example():
    seen = []

    def first_right(said: list[int], truth: list[int]) -> float:
        seen.append((said, truth))
        return 10.0 * (said[0] == truth[0])

    task = Language((), "ours:first_right", own=first_right)
    base = tiny.base("llama/lm", torch.float64)
    with Pack(base, TRAINING, task, DATA, capacity=1, max_rank=8, lora_alpha=16.0) as pack:
        slot = pack.admit(SLOTS[0])
        _, scores = pack.evaluate([slot], DATA, averaged=False)
    learned = [[token for token in own[1:] if token != -100] for own in DATA.labels]
    assert sorted(truth for _, truth in seen) == sorted(learned)
    batch = DATA.collate(range(len(DATA)))
    likeliest = base.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
    for row, labels in enumerate(DATA.labels):
        place = next(place for place, label in enumerate(labels) if place and label != -100)
        assert scores[0, row] == 10.0 * (int(likeliest[row, place - 1]) == labels[place])
    assert task.score(scores[0], DATA.labels) == pytest.approx(scores[0].mean().item())


@pytest.mark.parametrize("learned", [1, 3])
def test_few_learned_tokens_are_summed_over_the_vocabulary_as_precisely_as_many(learned):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        config = {"vocab_size": 40_000, "pad_token_id": 1, "tie_word_embeddings": False}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **tiny.SHAPES["llama"], **config))
        weight = model.get_output_embeddings().weight
        with (
            torch.no_grad()
        ):  # rows with much in common, as trained models have: the gradient is what is left of them
            weight.copy_(torch.randn_like(weight) + 20)
        model.to(dtype)
        watch(model)
        model.get_input_embeddings().weight.requires_grad_(True)
        ids = torch.tensor([[7, 8, 9, 10, 11]])
        labels = torch.where(torch.arange(5) < 5 - learned, -100, ids)
        logits = forward(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        assert logits.shape == (learned, 40_000)
        Language(()).batch_losses(logits, labels).sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad.double())
    assert torch.linalg.vector_norm(gradients[0] - gradients[1]) < 1e-4 * torch.linalg.vector_norm(gradients[1])
