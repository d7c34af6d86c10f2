"""The search: space, sampler, pruner, stages, engine, verdict."""
