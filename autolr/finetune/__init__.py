"""The full run from a recipe, and the optimizer users can take home."""
