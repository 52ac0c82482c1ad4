"""Python imports this first, in each process that has the folder on its path."""

from importlib import import_module

import_module("tests.simulated_gpu.runtime")
