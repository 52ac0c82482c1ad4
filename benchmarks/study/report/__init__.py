"""The report of a study, made from its trials: `python -m benchmarks.study.report OUT`.

Nothing is trained. Any number of finished trials makes a report. `tables` and `texts` (with
`words`) are its tables and its text, `figures` (with `drawing`) its figures, `limits` what the
study does not show; `page` and `paper` put them together as HTML and as Markdown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write(out: Path) -> dict[str, Any]:
    """See `writing.write`."""
    from benchmarks.study.report import writing  # matplotlib and scipy take seconds to import

    return writing.write(out)
