"""Recipes and trained adapters compared, and merged."""
