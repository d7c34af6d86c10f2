"""Rates by role in a training loop of your own: W_v learns λ times as fast as W_q."""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

import autolr


def main(steps: int = 5) -> list[float]:
    """Train a tiny random Llama on one batch; return the losses."""
    config = AutoConfig.for_model(
        "llama", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora)
    groups = autolr.parameter_groups(model, lr_q=1e-3, ratio=8, lr_head=1e-2)
    optimizer = torch.optim.AdamW(groups)
    ids, labels = torch.randint(1, 100, (8, 12)), torch.randint(0, 2, (8,))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    print(main())
