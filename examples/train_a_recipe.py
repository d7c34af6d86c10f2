"""Do the full run of a recipe and load the adapter with stock PEFT."""

import sys

from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import autolr


def main(recipe_file: str, out: str) -> None:
    """Train the recipe; the adapter is an ordinary PEFT adapter."""
    recipe = autolr.Recipe.load(recipe_file)
    result = autolr.train(recipe, out)
    print("test:", result.metrics["test"])
    base = AutoModelForSequenceClassification.from_pretrained(
        recipe.model, num_labels=len(recipe.classes), ignore_mismatched_sizes=True
    )
    print(type(PeftModel.from_pretrained(base, result.adapter)).__name__, "loaded")


if __name__ == "__main__":
    main(*sys.argv[1:3])
