"""One figure, narrow enough to be read on a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.common.nets import TITLES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import finish, png
from benchmarks.seeds.analysis import Answer
from benchmarks.seeds.report import INTERVAL_TITLES, mean_coverage, title

WIDTH, PANEL_HEIGHT = 6.6, 3.7  # inches
TITLE, LABEL, LEGEND = 17, 15, 13
COLOURS = {"winner": "black", "ranking": "#D55E00"}
INTERVAL_COLOURS = {"t": "#0072B2", "percentile": "#E69F00", "bca": "#009E73"}
LINES = {"relu": "-", "sigmoid": "--"}


def draw(recorded: dict[str, Any]) -> bytes:
    answers: Sequence[Answer] = recorded["answers"]
    settings = recorded["settings"]
    panels = 2 * len(answers) + 2
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * panels), layout="constrained")
    axes = iter(figure.subplots(panels, 1))
    for answer in answers:
        _draw_order(panel := next(axes), answer, title(answer, settings))
    _legend(panel, 2)
    for answer in answers:
        _draw_selection(panel := next(axes), answer)
    _legend(panel, 3)
    _draw_detectable(next(axes), answers)
    _draw_coverage(next(axes), answers)
    finish(figure, f"data: {settings['dataset']}, {settings['train_size']:,} images", ())
    return png(figure)


def _legend(axes: Axes, columns: int) -> None:
    """Below the panel, where it hides nothing."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=columns, fontsize=LEGEND,
        frameon=False, handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip


def _seeds_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.minorticks_off()
    axes.set_xlabel("seeds of the comparison", fontsize=LABEL)


def _draw_order(axes: Axes, answer: Answer, name: str) -> None:
    counts = answer["counts"]
    for i, pair in enumerate(answer["pairs"]):
        shares = [100 * share for share in pair["right"]]
        axes.plot(counts, shares, color="0.7", lw=1.2, label=None if i else "each pair")
    known, by_one, *_ = answer["order"]
    for what, text in (("winner", "the best is first"), ("ranking", "whole ranking")):
        for series, line in ((known, "-"), (by_one, ":")):
            shares = [100 * share for share in series[what]]
            axes.plot(counts, shares, line, color=COLOURS[what], lw=3.5)
        axes.plot([], color=COLOURS[what], lw=3.5, label=text)
    axes.plot([], ":", color="0.4", lw=3.5, label="rates chosen by 1 seed")
    axes.set_ylim(0, 101)
    axes.set_ylabel("right, %", fontsize=LABEL)
    axes.set_title(f"Does the order come out right?\n{name}", fontsize=TITLE)
    _seeds_axis(axes, counts)


def _draw_selection(axes: Axes, answer: Answer) -> None:
    net, selection = answer["net"], answer["selection"]
    height = 0.8 / len(selection)
    for i, choice in enumerate(selection):
        lost = [100 * one["lost_accuracy"] for one in choice["optimizers"]]
        places = np.arange(len(lost)) + (i - (len(selection) - 1) / 2) * height
        k = choice["seeds"]
        axes.barh(
            places, lost, height, color=str(0.15 + 0.3 * i), label=f"by {k} seed{'s' * (k > 1)}"
        )
    names = [OPTIMIZERS[one["optimizer"]].title for one in answer["optimizers"]]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy lost", fontsize=LABEL)
    axes.set_title(f"Learning rates chosen by few seeds\n{TITLES[net]}", fontsize=TITLE)


def _draw_detectable(axes: Axes, answers: Sequence[Answer]) -> None:
    for answer, colour in zip(answers, ("#0072B2", "#D55E00"), strict=False):
        counts = [k for k in answer["counts"] if k > 2]  # two seeds see next to nothing
        table = 100 * np.array([pair["detectable"] for pair in answer["pairs"]])[:, -len(counts) :]
        axes.plot(counts, np.median(table, 0), color=colour, lw=3.5, label=TITLES[answer["net"]])
        axes.fill_between(counts, table.min(0), table.max(0), color=colour, alpha=0.15, lw=0)
        _seeds_axis(axes, counts)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("points", fontsize=LABEL)
    axes.set_title("Difference seen with 80 % power\nline: median pair, band: all", fontsize=TITLE)
    _legend(axes, 2)


def _draw_coverage(axes: Axes, answers: Sequence[Answer]) -> None:
    axes.axhline(95, color="black", lw=1.2)
    for number, answer in enumerate(answers):
        counts = [k for k in answer["counts"] if k > 1]
        for kind, name in INTERVAL_TITLES.items():
            shares = [mean_coverage(answer, kind, i) for i in range(len(counts))]
            axes.plot(
                counts, [np.nan if share is None else 100 * share for share in shares],
                LINES[answer["net"]], color=INTERVAL_COLOURS[kind], lw=3,
                label=None if number else name,
            )  # fmt: skip
        _seeds_axis(axes, counts)
    axes.set_ylabel("covered, %", fontsize=LABEL)
    axes.set_title(
        "What 95 % intervals cover\nsolid: ReLU net, dashed: sigmoid net", fontsize=TITLE
    )
    _legend(axes, 3)
