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
from benchmarks.reproductions.wrong import NEVER_TRAINED

CaseResult = dict[str, Any]  # one case as reproductions.json has it
# The tolerance, a sentence, comes last: a page is narrow.
HEADINGS = ("quantity", "published", "ours", "verdict", "rejects", "seeds", "tolerance")
NUMBERS = ("published", "ours", "seeds")
LEFT_OUT = ("tolerance", "seeds")  # in the terminal, as is the range of seeds: it is narrow

# What a reproduced figure rejects, as the summary counts it.
OF_OPTIMIZER = "a wrong optimizer that trains"
OF_TRAINING = "only a net that is never trained"
OF_NET = "nothing"
UNTRIED = "not tried"
UNTRAINED = "nothing is trained"

NO_OPTIMIZER = "checks the net and the data, not the optimizer"
EXPLANATION = (
    "* **ours**: the median where there are several seeds, in brackets their range (of Nielsen's "
    "gradients the middle 95 %).\n"
    "* **verdict**: a figure is reproduced if ours agrees with the published one up to the "
    "tolerance in the last column. A figure that differs says what is known about it, one that was "
    "not run says which budget runs it.\n"
    "* **rejects**: the wrong optimizers with which the row would fail, and how many were tried. "
    "Each takes the place of the right one in the same experiment or a shorter one, and is "
    "rejected if the same tolerance calls its figure different.\n"
    "* A row that rejects nothing checks the net and the data, not the optimizer. One that rejects "
    f"only the net that is {NEVER_TRAINED} shows that the optimizer trains, not that its formula "
    "is right.\n"
    "* **seeds**: of the published figure / of ours."
)


def terminal_table(result: CaseResult) -> Table:
    # As `Text`, in which nothing is markup.
    table = Table(title=Text(result["title"]), box=box.SIMPLE_HEAD, title_style="bold")
    for heading in HEADINGS:
        if heading not in LEFT_OUT:
            right, text = heading in NUMBERS, heading in ("quantity", "rejects")
            table.add_column(heading, justify="right" if right else "left", ratio=int(text) or None)
    for row in result["rows"]:
        shown = zip(HEADINGS, cells(row | {"our_spread": None}, result), strict=True)
        table.add_row(*(Text(cell) for heading, cell in shown if heading not in LEFT_OUT))
    return table


def with_cases(results: Sequence[CaseResult], cases: Mapping[str, Case]) -> list[CaseResult]:
    """A result for each case, with its note and the names of the wrong optimizers for it.

    Of a case that has no result the figures are not run.
    """
    by_name = {result["case"]: result for result in results}
    return [
        {"title": case.title, "source": case.source, "rows": case.rows({}), "wrong": {}}
        | by_name.get(name, {})
        | {"note": case.note, "wrong_names": case.wrong_names()}
        for name, case in cases.items()
    ]


def markdown_tables(results: Sequence[CaseResult]) -> str:
    blocks = []
    for result in results:
        lines = [list(map(plain, cells(row, result))) for row in result["rows"]]
        blocks += [f"**{plain(result['title'])}**", f"{plain(result['source'])}."]
        blocks += [plain(text) for text in (result["note"], how_it_was_run(result)) if text]
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


def summary_of_checks(results: Sequence[CaseResult]) -> str:
    """How many of the reproduced figures reject what."""
    rows = [row for result in results for row in result["rows"] if row["verdict"] == REPRODUCED]
    kinds = Counter(map(kind_of_check, rows))
    reject, others = (
        ", ".join(f"{kind} ({kinds[kind]})" for kind in group)
        for group in ((OF_OPTIMIZER, OF_TRAINING, OF_NET), (UNTRIED, UNTRAINED))
    )
    return f"What the reproduced figures reject: {reject}; {others}"


def how_it_was_run(result: CaseResult) -> str:
    """The settings of a case and of the wrong optimizers; no text, if nothing was run."""
    if all(row["verdict"] == NOT_RUN for row in result["rows"]):
        return ""
    wrong = dict.fromkeys(map(_settings, result["wrong"].values()))
    text = f"Run with {_settings(result['settings'])}"
    return f"{text}; wrong optimizers with {' or '.join(wrong)}." if wrong else f"{text}."


def _settings(settings: Mapping[str, Any]) -> str:
    """For instance: budget standard (seeds 0, 1; epochs 5)."""
    shown = "; ".join(
        f"{name.replace('_', ' ')} {str(value).strip('[]')}"
        for name, value in settings.items()
        if name not in ("budget", "dataset")
    )
    return f"budget {settings['budget']}" + (f" ({shown})" if shown else "")


def cells(row: Mapping[str, Any], result: CaseResult) -> list[str]:
    """A row of a case's result as texts, under `HEADINGS`."""
    verdict = row["verdict"]
    if verdict != REPRODUCED:
        verdict += f": {row['note']}"
    ours = _text(row["ours"])
    if row["our_spread"] is not None and row["seeds"][1] > 1:
        ours += f" ({_text(row['our_spread'])})"
    return [
        row["quantity"], _text(row["published"]), ours, verdict, rejected(row, result),
        " / ".join(map(str, row["seeds"])), row["tolerance"],
    ]  # fmt: skip


def kind_of_check(row: Mapping[str, Any]) -> str:
    """What a figure that is reproduced is a check of."""
    wrong: Mapping[str, Mapping[str, Any]] | None = row["wrong"]
    if wrong is None:
        return UNTRAINED
    names = {name for name, tried in wrong.items() if tried["rejected"]}
    if names - {NEVER_TRAINED}:
        return OF_OPTIMIZER
    return OF_TRAINING if names else OF_NET if wrong else UNTRIED


def rejected(row: Mapping[str, Any], result: CaseResult) -> str:
    """The wrong optimizers with which a row fails, or what it is a check of.

    For instance: learning rate × 1.5, never trained (2 of 4).
    """
    if row["verdict"] == NOT_RUN:
        return "–"
    if row["verdict"] == DIFFERS:
        return "the right optimizer, too"
    kind, wrong = kind_of_check(row), row["wrong"]
    if kind == UNTRAINED:
        return f"{UNTRAINED}: {NO_OPTIMIZER}"
    if kind == UNTRIED:
        why = "longer than wrong optimizers are run" if result["wrong"] else "none was run here"
        return f"{UNTRIED}: {why}"
    names = [name for name, tried in wrong.items() if tried["rejected"]]
    left = len(set(result["wrong_names"]) - set(wrong))
    count = f"({len(names)} of {len(wrong)}{f', {left} not tried' * bool(left)})"
    text = f"{', '.join(names) or 'nothing'} {count}"
    if kind == OF_NET:
        return f"{text}: {NO_OPTIMIZER}" if not left else f"{text}: no check of the optimizer yet"
    if kind == OF_TRAINING:
        return f"{text}: checks that it trains, not by which formula"
    passes = NEVER_TRAINED in wrong and NEVER_TRAINED not in names
    return text + f"; a net that is {NEVER_TRAINED} passes" * passes


def _text(value: float | str | Sequence[float] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return " … ".join(map(_text, value))
    return f"{value:.5g}".replace("-", "−")
