"""The results as tables: in the terminal and, as Markdown, in the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks.common.markdown import plain
from benchmarks.common.markdown import table as markdown
from benchmarks.reproductions.case import DIFFERS, NOT_RUN, REPRODUCED, Case

CaseResult = dict[str, Any]  # one case as reproductions.json has it
# The tolerance, a sentence, comes last: a page is narrow.
HEADINGS = ("quantity", "published", "ours", "verdict", "rejects", "seeds", "tolerance")
NUMBERS = ("published", "ours", "seeds")
LEFT_OUT = ("tolerance", "seeds")  # in the terminal, as is the range of seeds: it is narrow

NO_CHECK = "no check of an optimizer"
EXPLANATION = (
    "Ours is the median where there are several seeds, in brackets their range (of Nielsen's "
    "gradients the middle 95 %); seeds: of the published figure / of ours. "
    "**Rejects**: the wrong optimizers whose figure is outside the tolerance, and how many were "
    "tried. A row that rejects none of them checks the net, the data and the loss, but no "
    "optimizer. Wrong optimizers are run in a part of an experiment; some figures that come late "
    "in a long training are not tried."
)


def terminal_table(result: CaseResult) -> Table:
    # As `Text`, in which nothing is markup.
    table = Table(title=Text(result["title"]), box=box.SIMPLE_HEAD, title_style="bold")
    for heading in HEADINGS:
        if heading not in LEFT_OUT:
            right, text = heading in NUMBERS, heading in ("quantity", "rejects")
            table.add_column(heading, justify="right" if right else "left", ratio=int(text) or None)
    for row in result["rows"]:
        shown = zip(HEADINGS, cells(row | {"our_spread": None}), strict=True)
        table.add_row(*(Text(cell) for heading, cell in shown if heading not in LEFT_OUT))
    return table


def with_missing(results: Sequence[CaseResult], cases: Mapping[str, Case]) -> list[CaseResult]:
    """A result for each case, with its note; of a case that has none the figures are not run."""
    by_name = {result["case"]: result for result in results}
    return [
        by_name.get(name, {"title": case.title, "source": case.source, "rows": case.rows({})})
        | {"note": case.note}
        for name, case in cases.items()
    ]


def markdown_tables(results: Sequence[CaseResult]) -> str:
    blocks = []
    for result in results:
        lines = [list(map(plain, cells(row))) for row in result["rows"]]
        blocks += [f"**{plain(result['title'])}**", f"{plain(result['source'])}."]
        blocks += [plain(result["note"])] * bool(result["note"])
        blocks.append(markdown([list(HEADINGS), *lines], texts=len(HEADINGS)))
    return "\n\n".join(blocks)


def summary(results: Sequence[CaseResult]) -> str:
    """For instance: 3 of 9 figures reproduced, 1 differs, 5 not run."""
    verdicts = Counter(row["verdict"] for result in results for row in result["rows"])
    differ = f"{verdicts[DIFFERS]} differ{'s' * (verdicts[DIFFERS] == 1)}"
    return (
        f"{verdicts[REPRODUCED]} of {verdicts.total()} figures reproduced, {differ}, "
        f"{verdicts[NOT_RUN]} not run"
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as texts, under `HEADINGS`."""
    verdict = row["verdict"]
    if verdict != REPRODUCED:
        verdict += f": {row['note']}"
    ours = _text(row["ours"])
    if row["our_spread"] is not None and row["seeds"][1] > 1:
        ours += f" ({_text(row['our_spread'])})"
    return [
        row["quantity"], _text(row["published"]), ours, verdict,
        rejected(row["wrong"]) if row["verdict"] != DIFFERS else "the right optimizer, too",
        " / ".join(map(str, row["seeds"])), row["tolerance"],
    ]  # fmt: skip


def rejected(wrong: Mapping[str, Mapping[str, Any]] | None) -> str:
    """For instance: learning rate × 1.5, never trained (2 of 4)."""
    if not wrong:
        return "not tried" if wrong is not None else "no optimizer runs"
    names = [name for name, tried in wrong.items() if tried["rejected"]]
    count = f"({len(names)} of {len(wrong)})"
    return f"{', '.join(names)} {count}" if names else f"{NO_CHECK} {count}"


def _text(value: float | str | Sequence[float] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return " … ".join(map(_text, value))
    return f"{value:.5g}".replace("-", "−")
