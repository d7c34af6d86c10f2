"""Examples: where they come from, how they are split, and in which batches they are seen."""
