"""The tables of a study as rows of texts, for Markdown, the page, the site and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import rich.box
import rich.table

from benchmarks.common.markdown import plain
from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.analysis import CLOCKS, TARGETS, Trial, reached, value
from benchmarks.study.report.words import (
    UNKNOWN,
    number,
    options_of,
    p_value,
    percent,
    setting_of,
    with_interval,
)
from benchmarks.study.trial import PHASES

Facts = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The first `texts` columns hold texts, the others numbers."""

    headings: list[str]
    rows: list[list[str]]
    texts: int = 1

    def markdown(self) -> str:
        rows = [
            [*map(plain, row[: self.texts]), *row[self.texts :]]
            for row in (self.headings, *self.rows)
        ]
        return markdown(rows, self.texts)

    def for_terminal(self, title: str) -> rich.table.Table:
        shown = rich.table.Table(
            title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False
        )
        for column, heading in enumerate(self.headings):
            justify: Literal["left", "right"] = "left" if column < self.texts else "right"
            shown.add_column(heading, justify=justify, no_wrap=True)
        for row in self.rows:
            shown.add_row(*row)
        return shown


def ranking_table(comparison: Facts) -> Table:
    headings = [
        "optimizer", "test accuracy %", "behind the best, points", "p", "median %",
        "lowest … highest %", "failed runs", "detectable, points", "setting", "validation %",
        "train loss", "generalization gap, points",
    ]  # fmt: skip
    rows = []
    for rank, entry in enumerate(comparison["ranking"], 1):
        behind, values = entry["difference"], entry["test_accuracy"]["values"]
        rows.append(
            [
                f"{rank}. {entry['title']}",
                with_interval(entry["test_accuracy"]),
                UNKNOWN if behind is None else with_interval(behind),
                p_value(behind and behind["p_corrected"]),
                percent(entry["median"], unit=""),
                f"{percent(min(values), unit='')}\u00a0…\u00a0{percent(max(values), unit='')}",
                f"{entry['failed']} of {len(values)}",
                percent(behind and behind["detectable"], unit=""),
                setting_of(entry),
                percent(entry["validation_accuracy"]["mean"], unit=""),
                number(entry["train_loss"]["mean"], ".4f"),
                percent(entry["accuracy_gap"]["mean"], unit=""),
            ]
        )
    return Table(headings, rows)


def result_table(comparison: Facts) -> Table:
    """The ranking in short, for a terminal of 80 columns."""
    headings = ["optimizer", "test accuracy %", "behind, points", "p", "failed"]
    return Table(headings, [[*row[:4], row[6]] for row in ranking_table(comparison).rows])


def gains_table(comparison: Facts) -> Table:
    headings = ["optimizer", "gain, points", "p", "detectable, points"]
    rows = [
        [
            entry["title"],
            with_interval(entry["gain"]),
            p_value(entry["gain"]["p_corrected"]),
            percent(entry["gain"]["detectable"], unit=""),
        ]
        for entry in comparison["ranking"]
        if entry.get("gain")
    ]
    return Table(headings, rows)


def selection_table(comparison: Facts) -> Table:
    headings = [
        "optimizer", "setting", "chosen", "mean %", "median %", "failed runs", "in the search %",
    ]  # fmt: skip
    rows = [
        [
            candidate["title"],
            setting_of(candidate),
            "yes" if candidate["chosen"] else "no",
            percent(candidate["mean"], unit=""),
            percent(candidate["median"], unit=""),
            f"{candidate['failed']} of {len(candidate['values'])}",
            percent(candidate["searched"], unit=""),
        ]
        for candidate in comparison["selection"]
    ]
    return Table(headings, rows, texts=3)


def targets_table(comparison: Facts) -> Table:
    headings = ["optimizer"]
    for target in TARGETS:
        headings += [f"{percent(float(target), 0)}: runs", *CLOCK_TITLES.values()]
    rows = []
    for entry in comparison["ranking"]:
        row = [entry["title"]]
        for target in TARGETS:
            times = entry["targets"][target]
            row.append(f"{times['reached']} of {times['of']}")
            row += [number(times[clock]["median"], CLOCK_FORMS[clock]) for clock in CLOCKS]
        rows.append(row)
    return Table(headings, rows)


CLOCK_TITLES = {"step": "steps", "epoch": "epochs", "seconds": "s"}
CLOCK_FORMS = {"step": ".0f", "epoch": ".2f", "seconds": ".1f"}


def sensitivity_table(comparison: Facts) -> Table:
    headings = [
        "optimizer", "setting", "validation %", "within 1 % of its best",
        "within 1 % of the best of all", "at chance", "diverged",
    ]  # fmt: skip
    rows = [
        [
            searched["title"],
            setting_of(searched["best"]) + (" (at the edge)" if searched["at_edge"] else ""),
            percent(searched["best"]["accuracy"], unit=""),
            *(
                f"{searched[name]} of {searched['tried']}"
                for name in ("close", "close_to_record", "failed", "diverged")
            ),
        ]
        for searched in comparison["sensitivity"]
    ]
    return Table(headings, rows, texts=2)


def trials_table(trials: Iterable[Trial]) -> Table:
    """Every trial."""
    headings = [
        "net", "optimizer", "phase", "space", "schedule", "options", "lr", "seed", "train loss",
        "validation %", "test %", "gap, points", "97 % after epochs", "98 % after epochs",
        "diverged at step", "s",
    ]  # fmt: skip
    rows = []
    for trial in sorted(trials, key=_order):
        settings, result = trial["settings"], trial["result"]
        rows.append(
            [
                settings["net"],
                OPTIMIZERS[settings["optimizer"]].title,
                trial["phase"],
                trial["search_space"],
                settings["schedule"],
                options_of(settings["options"]) or UNKNOWN,
                f"{settings['lr']:.3g}",
                str(settings["seed"]),
                number(value(trial, "train_loss"), ".4f"),
                percent(value(trial, "validation_accuracy"), unit=""),
                percent(value(trial, "test_accuracy"), unit=""),
                percent(value(trial, "accuracy_gap"), unit=""),
                *(number(reached(trial, target, "epoch"), ".2f") for target in TARGETS),
                str(result["diverged_at_step"]) if result["diverged"] else UNKNOWN,
                number(result["seconds"], ".1f"),
            ]
        )
    return Table(headings, rows, texts=6)


def _order(trial: Trial) -> tuple[Any, ...]:
    settings, phases = trial["settings"], [*PHASES]
    optimizer = [*OPTIMIZERS].index(settings["optimizer"])
    return (
        settings["net"], trial["search_space"], phases.index(trial["phase"]), optimizer,
        settings["lr"], settings["seed"], str(settings["options"]),
    )  # fmt: skip


def site_table(comparisons: Iterable[Facts]) -> Table:
    """The rankings in short, from a recorded summary.json, whose infinities are null."""
    headings = [
        "net", "optimizer", "test accuracy %", "behind the best, points", "p", "median %",
        "failed runs", "97 % after epochs", "rates within 1 % of the best", "rates at chance",
        "setting",
    ]  # fmt: skip
    rows = []
    for comparison in comparisons:
        tuned = {searched["optimizer"]: searched for searched in comparison["sensitivity"]}
        ranking = ranking_table(comparison).rows
        for entry, row in zip(comparison["ranking"], ranking, strict=True):
            median = entry["targets"]["0.97"]["epoch"]["median"]
            searched = tuned[entry["optimizer"]]
            rows.append(
                [
                    comparison["net"],
                    *row[:5],
                    row[6],
                    number(math.inf if median is None else median, ".2f"),
                    f"{searched['close_to_record']} of {searched['tried']}",
                    f"{searched['failed']} of {searched['tried']}",
                    row[8],
                ]
            )
    return Table(headings, rows, texts=2)
