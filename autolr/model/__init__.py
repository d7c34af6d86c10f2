"""The frozen base: its weights, its projections by role, and adapters in PEFT's form."""
