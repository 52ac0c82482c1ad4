"""The report of a study, made from its trials: `python -m benchmarks.study.report OUT`.

Nothing is trained. Any number of finished trials makes a report. `tables` and `texts` (with
`words`) are its tables and its text, `figures` (with `drawing`) its figures, `limits` what the
study does not show; `page` and `paper` put them together as HTML and as Markdown.
"""

from benchmarks.study.report.writing import write

__all__ = ["write"]
