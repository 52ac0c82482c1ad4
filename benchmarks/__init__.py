"""Experiments with the optimizers of torch_scratch_optim; run one with `python -m benchmarks.NAME`.

Three floors, each importing only from those below it:

* ground: command, data, drawn, landscapes, memory, nets, optimizers, record, shapes
* middle: trainee and training (one run), report and pictures (from what was recorded);
  entrants and stopwatch (the time of steps), step_report (from what was recorded)
* top: mnist and its mnist_options, step_time, readme (which fills in the README's tables)
"""
