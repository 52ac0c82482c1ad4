"""Published numbers on MNIST, measured again: `python -m benchmarks.study.published`.

A module to each source says what was published and measures the same; `case` holds what they have
in common, `nets` and `teaching` what is trained, `cases` the table of all; `running` runs them and
`parts` remembers, after an interruption, what was finished of a case.
"""

from benchmarks.study.published.cases import CASES
from benchmarks.study.published.running import run_cases

__all__ = ["CASES", "run_cases"]
