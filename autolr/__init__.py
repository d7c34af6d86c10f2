"""AutoLR."""
