"""Merging adapters: which can be averaged, the exact average, which to take, and the smallest rank that serves."""
