"""Pictures for a slide, drawn from the facts of an experiment; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import LABEL, TITLE

Pictures = dict[str, Figure]
WIDTH, HEIGHT = 13.3, 7.2  # inches, of a slide: a point of text here is a point there


def slide(height: float = HEIGHT) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def look(optimizer: str, with_marker: bool = False) -> dict[str, Any]:
    """An optimizer looks the same in every picture."""
    entry = OPTIMIZERS[optimizer]
    marker = {"marker": entry.marker, "ms": 9} if with_marker else {}
    return {"color": entry.colour, "lw": 3.5, **marker}


def label(panel: Axes, title: str, x: str = "", y: str = "") -> None:
    panel.set_title(title, fontsize=TITLE)
    panel.set_xlabel(x, fontsize=LABEL)
    panel.set_ylabel(y, fontsize=LABEL)


def numbers(values: Iterable[float | None]) -> list[float]:
    """JSON's null is a number that was not finite: a gap in a curve."""
    return [math.nan if value is None else value for value in values]


def power_of_ten(value: float) -> str:
    return f"$10^{{{round(math.log10(value))}}}$"
