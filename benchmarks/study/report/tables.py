"""The tables of a study, as texts in rows: Markdown, the page and the README show the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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
from benchmarks.study.statistics import CONFIDENCE

Facts = dict[str, Any]

EXPLANATION = (
    f"In brackets: {CONFIDENCE:.0%} bootstrap intervals. p: sign-flip permutation test of the "
    "difference to the best, corrected for all comparisons; “=” cannot be told from the best. "
    "A run that diverged counts as guessing; a run that misses 97 % on the validation set counts "
    "as infinite (∞)."
)


@dataclass(frozen=True)
class Table:
    """Its first `texts` columns hold texts, the others numbers."""

    headings: list[str]
    rows: list[list[str]]
    texts: int = 1

    def markdown(self) -> str:
        rows = [
            [*map(plain, row[: self.texts]), *row[self.texts :]]
            for row in (self.headings, *self.rows)
        ]
        return markdown(rows, self.texts)


def ranking_table(arena: Facts) -> Table:
    headings = [
        "place", "optimizer", "setting", "test accuracy %", "behind the best, points", "p",
        "validation %", "train loss", "generalization gap, points", "diverged",
    ]  # fmt: skip
    rows = []
    for place, entry in enumerate(arena["ranking"], 1):
        behind = entry["difference"]
        rows.append(
            [
                f"{place} =" if place > 1 and entry["like_the_best"] else str(place),
                entry["title"],
                setting_of(entry),
                with_interval(entry["test_accuracy"]),
                UNKNOWN if behind is None else with_interval(behind),
                p_value(None if behind is None else behind["p_corrected"]),
                percent(entry["validation_accuracy"]["mean"], unit=""),
                number(entry["train_loss"]["mean"], ".4f"),
                percent(entry["accuracy_gap"]["mean"], unit=""),
                percent(entry["diverged"], 0),
            ]
        )
    return Table(headings, rows, texts=3)


def targets_table(arena: Facts) -> Table:
    headings = ["optimizer"]
    for target in TARGETS:
        headings += [f"{percent(float(target), 0)}: runs", *CLOCK_TITLES.values()]
    rows = []
    for entry in arena["ranking"]:
        row = [entry["title"]]
        for target in TARGETS:
            found = entry["targets"][target]
            row.append(f"{found['reached']} of {found['of']}")
            row += [number(found[clock]["median"], CLOCK_FORMS[clock]) for clock in CLOCKS]
        rows.append(row)
    return Table(headings, rows)


CLOCK_TITLES = {"step": "steps", "epoch": "epochs", "seconds": "s"}
CLOCK_FORMS = {"step": ".0f", "epoch": ".2f", "seconds": ".1f"}


def sensitivity_table(arena: Facts) -> Table:
    headings = [
        "optimizer", "best setting", "validation %", "tried", "within 1 % of its best",
        "within 1 % of the best of all", "diverged",
    ]  # fmt: skip
    rows = [
        [
            one["title"],
            setting_of(one["best"]) + (" (at the edge)" if one["at_edge"] else ""),
            percent(one["best"]["accuracy"], unit=""),
            str(len(one["points"])),
            percent(one["close"], 0),
            percent(one["close_to_record"], 0),
            percent(one["diverged"], 0),
        ]
        for one in arena["sensitivity"]
    ]
    return Table(headings, rows, texts=2)


def trials_table(trials: Iterable[Trial]) -> Table:
    """Every trial there is."""
    headings = [
        "net", "optimizer", "phase", "track", "schedule", "options", "lr", "seed", "train loss",
        "validation %", "test %", "gap, points", "97 % after epochs", "98 % after epochs",
        "diverged at step", "s",
    ]  # fmt: skip
    rows = []
    for trial in sorted(trials, key=_place):
        settings, result = trial["settings"], trial["result"]
        rows.append(
            [
                settings["net"],
                OPTIMIZERS[settings["optimizer"]].title,
                trial["phase"],
                trial["track"],
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


def _place(trial: Trial) -> tuple[Any, ...]:
    settings = trial["settings"]
    optimizer = [*OPTIMIZERS].index(settings["optimizer"])
    return (
        settings["net"], trial["track"], trial["phase"], optimizer, settings["lr"],
        settings["seed"], str(settings["options"]),
    )  # fmt: skip


def readme_table(summary: Facts) -> Table:
    """The track "lr" in short, from a recorded summary.json, whose infinities are null."""
    headings = [
        "net", "place", "optimizer", "setting", "test accuracy %", "behind the best, points", "p",
        "97 % after epochs", "rates within 1 % of the best of all", "rates that diverge",
    ]  # fmt: skip
    rows = []
    for arena in summary["arenas"]:
        tuned = {one["optimizer"]: one for one in arena["sensitivity"]}
        for entry, row in zip(arena["ranking"], ranking_table(arena).rows, strict=True):
            if arena["track"] != "lr":
                continue
            median = entry["targets"]["0.97"]["epoch"]["median"]
            one = tuned.get(entry["optimizer"], {})
            rows.append(
                [
                    arena["net"],
                    *row[:6],
                    number(math.inf if median is None else median, ".2f"),
                    percent(one.get("close_to_record"), 0),
                    percent(one.get("diverged"), 0),
                ]
            )
    return Table(headings, rows, texts=4)
