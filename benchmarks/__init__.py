"""Experiments with the optimizers of torch_scratch_optim; run one with `python -m benchmarks.NAME`.

Three floors, each importing only from those below it:

* ground: command and options (on signals and claims), data, drawn, landscapes, memory, nets,
  optimizers, processes, record, reading, shapes, workers; option_cases and lookalikes (other
  formulas of the same names)
* middle: trainee and training (one run), report and pictures (from what was recorded);
  entrants and stopwatch (the time of steps), step_report (from what was recorded);
  atlas (bit by bit against torch), equivalence_report (from what was recorded)
* top: mnist and its mnist_options, step_time, equivalence, challenges (a house of its own),
  gradient_release, study (another house), facts (tables of the documentation)
"""

import sys

# `python -m benchmarks.NAME` imports this package before anything that takes seconds, and while it
# looks for NAME, sys.argv[0] is "-m". Whoever imports the package otherwise keeps their handlers.
if sys.argv[:1] == ["-m"]:
    from benchmarks import signals

    signals.end_at_once()
