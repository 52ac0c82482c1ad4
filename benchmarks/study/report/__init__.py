"""The report of a study, made from what its trials left: `python -m benchmarks.study.report OUT`.

Nothing is trained. Any number of finished trials makes a report, so that it can be made again
whenever some more have ended. `words` and `tables` say it in texts, `figures` (on `drawing`) in
pictures, `limits` what it does not say; `page` and `paper` put them together.
"""

from benchmarks.study.report.writing import write

__all__ = ["write"]
