"""Published results on MNIST, reproduced: `python -m benchmarks.reproductions`.

A module to each source says what was published and runs the same experiment; `case` holds what they
have in common, `nets` and `training` what is trained and how, `cases` the table of all. `running`
runs cases, `parts` keeps the finished parts of a case that is interrupted, `table` shows results.
"""
