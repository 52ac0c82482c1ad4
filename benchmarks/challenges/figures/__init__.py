"""Figures for slides, drawn from the results of an experiment; nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.optimizers import CORRECTED, OPTIMIZERS, UNCORRECTED
from benchmarks.common.plots import LABEL, TICK, TITLE
from benchmarks.common.plots import finish as finish_plot
from benchmarks.common.test_functions import Objective

Figures = dict[str, Figure]
WIDTH, HEIGHT = 13.3, 7.2  # inches, of a slide: a point of text here is a point there
DASHED: Any = (0, (2, 1.2))
THEORY: dict[str, Any] = {"color": "black", "lw": 2.2, "ls": (0, (3, 2))}


def new_figure(height: float = HEIGHT) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def line_style(optimizer: str, with_marker: bool = False) -> dict[str, Any]:
    """An optimizer looks the same in every figure; variants in bias correction are dashed."""
    entry, variant = OPTIMIZERS[optimizer], optimizer in (CORRECTED, UNCORRECTED)
    style = {"color": entry.colour, "lw": 3.5, "ls": DASHED if variant else "-"}
    style |= {"zorder": 3} if variant else {}  # where two lines coincide both are seen
    if with_marker:
        style |= {"marker": entry.marker, "ms": 9, "mfc": "white" if variant else entry.colour}
    return style


def legend(names: Iterable[str], with_markers: bool = False) -> list[Line2D]:
    """A line for each optimizer, once."""
    return [
        Line2D([], [], **line_style(name, with_markers), label=OPTIMIZERS[name].title)
        for name in dict.fromkeys(names)
    ]


def finish(figure: Figure, caption: str, handles: Sequence[Artist] = ()) -> None:
    """Ticks, grid, caption and a legend in one row, or in two if it is too wide for one."""
    finish_plot(figure, caption, [])
    if handles:
        characters = sum(6 + len(str(handle.get_label())) for handle in handles)
        columns = len(handles) if characters <= 116 else (len(handles) + 1) // 2
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns,
            fontsize=TICK, frameon=False, handlelength=2.2, columnspacing=1.2,
        )  # fmt: skip


def label_axes(panel: Axes, title: str, x: str = "", y: str = "") -> None:
    panel.set_title(title, fontsize=TITLE)
    panel.set_xlabel(x, fontsize=LABEL)
    panel.set_ylabel(y, fontsize=LABEL)


def nan_for_null(values: Iterable[float | None]) -> list[float]:
    """JSON's null stands for a value that was not finite: a gap in a curve."""
    return [math.nan if value is None else value for value in values]


def mark_start(panel: Axes, x: float, y: float) -> None:
    panel.plot(x, y, "s", color="black", ms=11, zorder=6)


def contours(
    figure: Figure,
    panel: Axes,
    objective: Objective,
    levels: int | list[float] = 25,
    norm: Normalize | None = None,
) -> None:
    """Filled contours of a function of two coordinates, with a colour bar."""
    (left, right), (low, high) = objective.domain
    x = torch.linspace(left, right, 160, dtype=torch.float64)
    y = torch.linspace(low, high, 160, dtype=torch.float64)
    values = objective.value(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
    filled = panel.contourf(x, y, values, levels=levels, cmap="Greys", alpha=0.55, norm=norm)
    panel.contour(x, y, values, levels=levels, colors="0.6", linewidths=0.7)
    panel.set_xlim(left, right)
    panel.set_ylim(low, high)
    bar = figure.colorbar(filled, ax=panel, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=TICK)
