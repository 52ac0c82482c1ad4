"""The time of a step: `python -m benchmarks.step_time`."""
