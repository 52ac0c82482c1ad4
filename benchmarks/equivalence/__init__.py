"""Every option, dtype and engine against torch, bit by bit: `python -m benchmarks.equivalence`."""
