"""What the benchmarks share: their document, models, data, stock trainings and database servers."""
