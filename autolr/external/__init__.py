"""Searches around training code of the user's own: a function, or a transformers or TRL trainer."""
