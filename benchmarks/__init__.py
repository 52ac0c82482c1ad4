"""Experiments with the optimizers of torch_scratch_optim; run one with `python -m benchmarks.NAME`.

Three floors, each importing only from those below it:

* ground: data, drawn, nets, optimizers, record
* middle: trainee and training (one run), report and pictures (from what was recorded)
* top: mnist and its mnist_options, readme (which fills in the README's tables)
"""
