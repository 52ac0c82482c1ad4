"""Five optimizers on two deep nets, ours beside torch's: `python -m benchmarks.mnist`."""
