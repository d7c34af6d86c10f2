"""A recipe's rates in a trainer that you have: two lines more, and the adapter's configuration if you like.

It is transformers.Trainer here; TRL's SFTTrainer and DPOTrainer, or your own subclass, go in its place.
"""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

import autolr


def main(out: str = "trained", steps: int = 3) -> list[dict[str, float]]:
    """Train a tiny random Llama; return what each step logs, the rate of each role with it."""
    config = AutoConfig.for_model(
        "llama", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    ids = torch.randint(1, 100, (4 * steps, 12)).tolist()
    # In place of these rates: autolr.Recipe.load("runs/mine/recipe.yaml")
    trainer = autolr.with_rates(Trainer, {"lr_q": 1e-4, "ratio": 8})(
        model=get_peft_model(AutoModelForCausalLM.from_config(config), lora),
        args=TrainingArguments(
            out, max_steps=steps, per_device_train_batch_size=4, logging_steps=1, report_to="none"
        ),
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}),
    )
    trainer.train()
    return trainer.state.log_history[:steps]


if __name__ == "__main__":
    print(main())
