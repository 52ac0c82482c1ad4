"""What a study does not show: said beside its figures, not left to the reader."""

from __future__ import annotations

from typing import Any

from benchmarks.common.data import SYNTHETIC_NAME
from benchmarks.study.statistics import CONFIDENCE, least_p

Facts = dict[str, Any]


def limits(facts: Facts) -> list[str]:
    """One sentence or two for each; those that depend on the run name its numbers."""
    arenas = facts["arenas"]
    drawn = any(arena["dataset"] == "synthetic" for arena in arenas)
    seeds = [len(arena["seeds"]) for arena in arenas if arena["ranking"]]
    return [
        *([_DRAWN] if drawn else []),
        *_FROM_ANY_RUN,
        *([_few_seeds(min(seeds), facts["comparisons"])] if seeds else []),
        *_edges(arenas),
        *_shared_seconds(arenas),
    ]


_DRAWN = (
    f"Anything about MNIST. The data are {SYNTHETIC_NAME}: easier, and made by a program. No "
    "figure here may be set beside a published one."
)

_FROM_ANY_RUN = (
    "How other nets or other data would do. These are fully connected nets on small grey pictures; "
    "convolutions, attention, large batches and long runs rank optimizers otherwise.",
    "The best that an optimizer can do. Each got the same grid or ranges, and a few rates more "
    "where its best was at the grid's end; more settings, or other ranges, may move any place. In "
    "the track \"lr\" only the learning rate is tuned: momentum, β and ε keep their defaults, and "
    "ε matters in deep sigmoid nets.",
    "The luck of the search. Settings were chosen by single trials on the validation set; "
    f"the {CONFIDENCE:.0%} intervals tell only how the chosen setting varies with initial weights "
    "and the order of batches.",
    "A contest between equals. The best was found by the runs that the others are compared with, "
    "which flatters it a little. A p-value says whether a difference is there, not whether it "
    "matters: look at its size. p-values are corrected for the number of comparisons, intervals "
    "are not.",
    "What a longer training would end in. Everything is measured after the same number of epochs; "
    "a method that is behind then may lead later, and the reverse.",
    "That a flat valley is a good one. An optimizer that learns nothing at any learning rate is "
    "perfectly insensitive to it: compare with the best of all.",
)  # fmt: skip


def _few_seeds(seeds: int, comparisons: int) -> str:
    if seeds < 2:
        return "Any spread. There is one seed only: no intervals, no p-values, no ranking to trust."
    return (
        f"Small differences. With {seeds} seeds no p-value can be smaller than "
        f"{least_p(seeds):.2g} before it is corrected for {comparisons} comparisons; what is not "
        "told apart here may still differ."
    )


def _edges(arenas: list[Facts]) -> list[str]:
    names = [
        f"{one['title']} ({arena['net']}, track {arena['track']})"
        for arena in arenas
        if arena["track"] == "lr"
        for one in arena["sensitivity"]
        if one["at_edge"]
    ]
    return [
        f"The best learning rate of {', '.join(names)}: it lies at the edge of what was tried."
    ] * bool(names)


def _shared_seconds(arenas: list[Facts]) -> list[str]:
    unknown = any(
        found["seconds"]["median"] is None
        for arena in arenas
        for entry in arena["ranking"]
        for found in entry["targets"].values()
    )
    return [
        "The speed of optimizers. Seconds are those of this machine, with whatever ran beside; "
        "`python -m benchmarks.step_time` measures steps."
        + (" Trials that were trained in a stack have no seconds of their own." if unknown else "")
    ]
