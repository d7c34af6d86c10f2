"""Measured grids of full runs, and what they say about short trials."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
