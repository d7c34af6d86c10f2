"""Many trials on one frozen base: the pack, its rows of parameters, and their optimizer."""
