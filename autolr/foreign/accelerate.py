"""Accelerate: a launch configuration and a plain loop, in which each role has its rate."""

from __future__ import annotations

from autolr.documents import to_yaml
from autolr.errors import ModelError
from autolr.foreign.terms import terms_of
from autolr.foreign.tool import Export, data_files, has_chats, lost_always
from autolr.recipe import Recipe
from autolr.study import LANGUAGE

_SCRIPT = '''"""Fine-tuning in a plain loop, each role at the recipe's rate: {command}"""

import torch
from accelerate import Accelerator
from datasets import load_dataset
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import {auto}, AutoTokenizer, get_scheduler

import autolr

recipe = autolr.Recipe.load("recipe.yaml")
accelerator = Accelerator()
torch.manual_seed(recipe.seed)
source = {model!r}
tokenizer = AutoTokenizer.from_pretrained(source)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
base = {auto}.from_pretrained(source{arguments})
base.config.pad_token_id = tokenizer.pad_token_id
for module in base.modules():  # the search trained without dropout
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
model = get_peft_model(base, autolr.lora_config(recipe))
optimizer = autolr.create_optimizer(model, recipe)
schedule = get_scheduler({schedule!r}, optimizer, {warmup}, recipe.steps)


def batch_of(rows):
{collate}

data = load_dataset("json", data_files={{"train": "data/train.jsonl", "select": "data/validation.jsonl"}})
size = recipe.training.batch_size // accelerator.num_processes
assert size * accelerator.num_processes == recipe.training.batch_size, "the batch size must divide by the processes"
train = DataLoader(data["train"], size, shuffle=True, collate_fn=batch_of, drop_last=True)
select = DataLoader(data["select"], size, collate_fn=batch_of)
model, optimizer, train, select = accelerator.prepare(model, optimizer, train, select)
step = 0
while step < recipe.steps:
    for batch in train:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), recipe.training.clip_norm or float("inf"))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step += 1
        if step == recipe.steps:
            break
model.eval()
with torch.no_grad():
    losses = [accelerator.gather(model(**batch).loss.reshape(1)).mean().item() for batch in select]
accelerator.print(f"step {{step}}: train loss {{loss.item():.4f}}, select loss {{sum(losses) / len(losses):.4f}}")
accelerator.unwrap_model(model).save_pretrained("out")
'''
_LABELLED = """    pairs = [row.get("pair") for row in rows] if "pair" in rows[0] else None
    texts = [row["text"] for row in rows]
    batch = tokenizer(texts, pairs, padding=True, truncation=True, max_length={length}, return_tensors="pt")
    return {{**batch, "labels": torch.tensor([row["label"] for row in rows])}}
"""
_LEARNED = '''    """Prompts, and what the assistant did not say, are not learned."""
    ids, learned = [], []
    for row in rows:
        prompt, completion = {pieces}
        whole = tokenizer(prompt + completion, return_offsets_mapping=True, return_special_tokens_mask=True)
        places = zip(whole["input_ids"], whole["offset_mapping"], whole["special_tokens_mask"], strict=True)
        own = [(token, not is_added and end > len(prompt)) for token, (_, end), is_added in places]
        while not own[-1][1]:  # what the tokenizer puts behind a text
            own.pop()
        if own[-1][0] != tokenizer.eos_token_id:
            own.append((tokenizer.eos_token_id, True))
        ids.append([token for token, _ in own][:{length}])
        learned.append([token if wanted else -100 for token, wanted in own][:{length}])
    longest = max(len(own) for own in ids)

    def padded(lists, value):
        return torch.tensor([own + [value] * (longest - len(own)) for own in lists])

    mask, ids = padded([[1] * len(own) for own in ids], 0), padded(ids, tokenizer.pad_token_id)
    return {{"input_ids": ids, "attention_mask": mask, "labels": padded(learned, -100)}}
'''
_PIECES = {
    "sft": 'row["prompt"], row["completion"]',
    "lm": '"", row["text"]',
}


def export(recipe: Recipe) -> Export:
    """Return `accelerate.yaml`, as `accelerate launch` reads it, the loop that it launches, and the data.

    Raises:
        ModelError: see `autolr.foreign.terms.lora_config`; or the recipe learns chats.
    """
    data, terms = data_files(recipe), terms_of(recipe)
    if has_chats(data):
        raise ModelError("--to accelerate: its plain loop knows no chats, and this recipe learns them; use --to trl")
    command = "accelerate launch --config_file accelerate.yaml train.py"
    language = recipe.task in LANGUAGE
    length = recipe.data.max_length
    collate = (
        _LEARNED.format(pieces=_PIECES[recipe.task], length=length) if language else _LABELLED.format(length=length)
    )
    problem = ', problem_type="regression"' if recipe.task == "regression" else ""
    script = _SCRIPT.format(
        command=command,
        auto="AutoModelForCausalLM" if language else "AutoModelForSequenceClassification",
        arguments=""
        if language
        else f", id2label=dict(enumerate(recipe.classes)), ignore_mismatched_sizes=True{problem}",
        model=terms["model"],
        schedule=terms["schedule"],
        warmup=terms["warmup_steps"],
        collate=collate,
    )
    content = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO",
        "num_machines": 1,
        "num_processes": 1,
        "machine_rank": 0,
        "mixed_precision": "bf16" if recipe.training.precision == "bf16" else "no",
        "use_cpu": False,
        "debug": False,
        "downcast_bf16": "no",
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
    }
    lost = [
        "rates: the configuration holds none; train.py takes them from recipe.yaml",
        *lost_always(recipe, dropout=False),
    ]
    lost.append("select: scored at the end, so the last step's adapter is kept, not the best checkpoint's")
    if recipe.training.precision in ("int8", "nf4"):
        lost.append(f"precision {recipe.training.precision}: the loop trains on the base as it is")
    return Export(
        "accelerate", {"accelerate.yaml": to_yaml(content), "train.py": script, **data}, command, tuple(lost)
    )
