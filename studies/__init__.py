"""The studies that AutoLR ships (`*.yaml`), and what measures it: `benchmarks` and `research`."""

from pathlib import Path

STUDIES = Path(__file__).resolve().parent
SENTIMENT = STUDIES / "sentiment.yaml"
