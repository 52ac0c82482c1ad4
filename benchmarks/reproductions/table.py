"""The results as tables: in the terminal and, as Markdown, in the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks.common.markdown import plain
from benchmarks.common.markdown import table as markdown
from benchmarks.reproductions.case import DIFFERS, NOT_RUN, REPRODUCED

CaseResult = dict[str, Any]  # one case as reproductions.json has it
HEADINGS = ("quantity", "verdict", "tolerance", "published", "ours")
TEXTS = 3  # columns of texts; the others hold numbers


def terminal_table(case: CaseResult) -> Table:
    # As `Text`, in which nothing is markup.
    table = Table(title=Text(case["title"]), box=box.SIMPLE_HEAD, title_style="bold")
    for number, heading in enumerate((*HEADINGS, "note")):
        table.add_column(heading, justify="right" if TEXTS <= number < len(HEADINGS) else "left")
    for row, cells in zip(case["rows"], _cells(case), strict=True):
        table.add_row(*map(Text, (*cells, row["note"])))
    return table


def markdown_table(cases: Sequence[CaseResult]) -> str:
    """A table for each case, narrow enough for a page: the tolerance, a sentence, comes last."""
    parts = []
    for case in cases:
        rows = [
            [plain(quantity), plain(verdict), theirs, ours, plain(tolerance)]
            for quantity, verdict, tolerance, theirs, ours in _cells(case)
        ]
        headings = ["quantity", "verdict", "published", "ours", "tolerance"]
        parts += [f"**{plain(case['title'])}**", markdown([headings, *rows], texts=2)]
    return "\n\n".join(parts)


def summary(cases: Sequence[CaseResult]) -> str:
    """For instance: 3 of 9 figures reproduced, 1 differs, 5 not run."""
    verdicts = Counter(row["verdict"] for case in cases for row in case["rows"])
    others = [f"{verdicts[verdict]} {verdict}" for verdict in (DIFFERS, NOT_RUN)]
    return ", ".join([f"{verdicts[REPRODUCED]} of {verdicts.total()} figures reproduced", *others])


def _cells(case: CaseResult) -> list[list[str]]:
    texts = ("quantity", "verdict", "tolerance")
    return [
        [*(row[name] for name in texts), *(_text(row[whose]) for whose in ("theirs", "ours"))]
        for row in case["rows"]
    ]


def _text(value: float | Sequence[float] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Sequence):
        return " … ".join(map(_text, value))
    return f"{value:.5g}".replace("-", "−")
