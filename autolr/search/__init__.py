"""The search: space, sampler, pruner, loop, confirmation, verdict."""
