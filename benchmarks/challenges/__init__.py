"""Experiments on what makes optimization hard; run them with `python -m benchmarks.challenges`.

Each experiment is two modules of one name: the one here measures and states what it found, the
one in `figures` draws from these results. They share `experiment` (sizes, findings), `optimizers`,
`trajectories` (on test functions) and `training` (of nets); `artifacts` writes the files.
"""
