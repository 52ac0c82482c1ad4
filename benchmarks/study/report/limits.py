"""What a study does not show: a section of its report."""

from __future__ import annotations

from typing import Any

from benchmarks.common.data import SYNTHETIC_NAME

Facts = dict[str, Any]


def limits(facts: Facts) -> list[str]:
    """One or two sentences for each."""
    comparisons = facts["comparisons"]
    synthetic = any(comparison["dataset"] == "synthetic" for comparison in comparisons)
    one_seed = any(len(comparison["seeds"]) == 1 for comparison in comparisons)
    return [
        *([_SYNTHETIC] if synthetic else []),
        *([_ONE_SEED] if one_seed else []),
        *_FROM_ANY_RUN,
        *_edges(comparisons),
        _speed(comparisons),
    ]


_SYNTHETIC = (
    f"Anything about MNIST. The data are {SYNTHETIC_NAME}, which are easier. Do not compare these "
    "figures with published ones."
)

_ONE_SEED = "Any spread. There is one seed only: no intervals, no p-values, no ranking to trust."

_FROM_ANY_RUN = (
    "How other nets or other data would do. These are fully connected nets on small grey images; "
    "convolutions, attention, large batches and long runs rank optimizers differently.",
    "The best that an optimizer can do. Each got the same grid or ranges, and a few more learning "
    "rates where its best was at an end of the grid; more trials or other ranges may change any "
    "place. In the search space \"lr\" momentum, β, ε and weight decay keep their defaults, and ε "
    "matters in deep sigmoid nets.",
    "The luck of the choice. A few seeds chose each setting. The intervals say only how the chosen "
    "setting varies with initial weights and the order of batches.",
    "Equality. A p-value above 5 % does not say that two optimizers are equally good: look at the "
    "difference that could have been seen. A p-value below 5 % does not say that the difference "
    "matters: look at its size. p-values are corrected for the comparisons of a table, intervals "
    "are not. The best was found by the runs that it is compared with, which flatters it a little.",
    "What longer training would give. All runs have the same number of epochs; an optimizer that "
    "is behind may lead later, and the reverse.",
    "That insensitivity is good. An optimizer that trains at no learning rate is perfectly "
    "insensitive to it: compare with the best of all.",
)  # fmt: skip


def _edges(comparisons: list[Facts]) -> list[str]:
    names = [
        f"{searched['title']} ({comparison['net']})"
        for comparison in comparisons
        for searched in comparison["sensitivity"]
        if searched["at_edge"]
    ]
    return [f"The best learning rate of {', '.join(names)}: it is at an end of the grid."] * bool(
        names
    )


def _speed(comparisons: list[Facts]) -> str:
    stacked = any(comparison["stacked"] for comparison in comparisons)
    return (
        "The speed of optimizers. Seconds are those of this machine and its load; "
        "`python -m benchmarks.step_time` measures steps."
        + (" Trials in a stack have no seconds of their own." if stacked else "")
    )
