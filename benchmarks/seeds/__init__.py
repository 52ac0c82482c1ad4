"""How many seeds does a ranking of optimizers need? Run `python -m benchmarks.seeds`."""
