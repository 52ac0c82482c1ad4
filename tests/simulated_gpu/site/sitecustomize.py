"""Python imports this first, in each process that has the folder on its path."""

import tests.simulated_gpu.runtime  # noqa: F401
