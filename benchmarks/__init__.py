"""Experiments with the optimizers of torch_scratch_optim; run one with `python -m benchmarks.NAME`.

One folder for each command; `common` is what they share. A command imports `common` and itself.
`facts` makes the tables of the documentation from all that was recorded in `results`.
"""

import sys

# `python -m benchmarks.NAME` imports this package before anything that takes seconds, and while it
# looks for NAME, sys.argv[0] is "-m". Whoever imports the package otherwise keeps their handlers.
if sys.argv[:1] == ["-m"]:
    from benchmarks.common import signals

    signals.end_at_once()
