"""The memory that steps during the backward pass save: `python -m benchmarks.gradient_release`."""
