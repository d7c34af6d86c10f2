"""One call that checks and times AutoLR on a real GPU: `python -m studies.benchmarks.gpu`."""
