"""The order of a report and what it says between tables and figures: on paper and on the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.analysis import CHANCE, LIKELY, TARGETS
from benchmarks.study.report.tables import (
    Table,
    ranking_table,
    sensitivity_table,
    targets_table,
)
from benchmarks.study.report.words import percent
from benchmarks.study.statistics import CONFIDENCE

Facts = dict[str, Any]

TITLE = "Which optimizer for deep nets?"
LIMITS_TITLE = "What this does not show"
TRIALS_TITLE = "Every trial"
NOTHING = "No trial has ended yet."

TRACKS = {"lr": "learning rate tuned", "all": "every hyper-parameter tuned"}


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    figures: Sequence[str]
    table: Table | None


def heading(arena: Facts) -> str:
    """For instance: Deep sigmoid net 784-128×5-10, learning rate tuned, 3 epochs."""
    title = str(arena["title"])
    schedule = "" if arena["schedule"] == "constant" else f", {arena['schedule']} schedule"
    epochs = f"{arena['epochs']:g} epoch{'s' * (arena['epochs'] != 1)}"
    return f"{title[0].upper()}{title[1:]}: {TRACKS[arena['track']]}, {epochs}{schedule}"


def sections(arena: Facts) -> Iterator[Section]:
    if arena["ranking"]:
        figures = ["ranking", "behind_the_best"] if len(arena["ranking"]) > 1 else ["ranking"]
        yield Section("Ranking", _ranking_text(arena), figures, ranking_table(arena))
    if arena["sensitivity"]:
        yield Section(
            "Sensitivity to the learning rate", _SENSITIVITY, ["sensitivity"],
            sensitivity_table(arena),
        )  # fmt: skip
    if arena["ranking"]:
        yield Section("Learning curves", _CURVES, ["training_loss", "validation_error"], None)
        names = [f"time_to_{target.removeprefix('0.')}" for target in TARGETS]
        yield Section("Time to a target", _TARGETS, names, targets_table(arena))
    if arena["ranking"] and all(entry["gradient_flow"]["layers"] for entry in arena["ranking"]):
        yield Section("Gradient flow", _FLOW, ["gradient_flow"], None)


def verdict(arena: Facts) -> str:
    """Who comes first, and who cannot be told from it."""
    first, *others = arena["ranking"]
    alike = [entry["title"] for entry in others if entry["like_the_best"]]
    accuracy = percent(first["test_accuracy"]["mean"])
    text = f"{first['title']} comes first with {accuracy} on the test set"
    if any(entry["like_the_best"] is None for entry in others):
        text += "; there are too few seeds to tell what is chance"
    elif alike:
        text += f"; {_listed(alike)} cannot be told from it"
    elif others:
        text += ", ahead of every other"
    return text + "."


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _ranking_text(arena: Facts) -> str:
    seeds = len(arena["seeds"])
    return (
        f"**{verdict(arena)}** The setting with the best validation accuracy of the search, "
        f"trained anew with {seeds} seed{'s' * (seeds != 1)}; a seed means the same initial "
        "weights and the same order of batches to every optimizer. In brackets: "
        f"{CONFIDENCE:.0%} bootstrap intervals. Behind the best: paired by seed. p: sign-flip "
        "permutation test, corrected for all comparisons of this report (false discovery rate); "
        f"“=” cannot be told from the best (p > {LIKELY:g}). A run that diverged counts as "
        f"guessing, {CHANCE:.0%}."
    )


_SENSITIVITY = (
    "The validation error at the end, for each learning rate that was tried. A wide valley "
    "forgives a wrong guess; its floor is what tuning can reach. The grey band is "
    "within 1 % of the best of all. Circles: the best of each; crosses: trials that diverged."
)
_CURVES = "Lines: the median of all seeds. Bands: from the lowest to the highest."
_TARGETS = (
    "Medians over all runs; a run that never reaches the target counts as infinite (∞), so the "
    "median is infinite if half of them miss it. Evaluation is off the clock. Profiles: the sooner "
    "and the higher, the better; the dashes are the end of the training."
)
_FLOW = (
    "Dashes: early in the training of the best optimizer, at the step that the legend names. "
    "Colours: at the end of the training, the median of the last samples and of the seeds."
)
