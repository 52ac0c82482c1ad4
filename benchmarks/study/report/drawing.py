"""Figures as SVG, in which a page can show and hide each optimizer.

A figure is one panel, narrow enough for a phone; a wide page has several in a row.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import legend_of

SIZE = (5.2, 4.0)  # inches
TEXT, SMALL = 11, 10  # points; on a phone a figure is about as wide as it is drawn
INK = "#000000"  # a page replaces it with its own colour of text
GREY = "#808080"  # visible on white and on black
MARK = "mark:"  # prefix of the ids of an optimizer's artists


def panel(title: str, x: str, y: str, rows: int | None = None) -> tuple[Figure, Axes]:
    """An empty figure with its axes; one with few `rows` is lower."""
    width, height = SIZE
    size = (width, height if rows is None else min(height, 1 + 0.5 * rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=TEXT, loc="left")
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.grid(True, which="major", color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def style(optimizer: str, marker: bool = True) -> dict[str, Any]:
    """The colour and the marker that an optimizer has in every picture."""
    entry = OPTIMIZERS[optimizer]
    return {"color": entry.colour} | ({"marker": entry.marker} if marker else {})


def tag(artists: Sequence[Artist] | Artist, optimizer: str, words: str) -> None:
    """Let a page hide the artists with their optimizer, and show `words` as their tooltip."""
    for artist in artists if isinstance(artists, Sequence) else [artists]:
        artist.set_gid(f"{MARK}{optimizer}:{words}")


def percent_of_errors(axes: Axes, which: str, errors: Sequence[float]) -> None:
    """A logarithmic axis of error rates (0 … 1), labelled in per cent."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.9]
    low, high = min(errors), max(errors)
    if high < 2 * low:  # too narrow for these
        step = 0.001 if high - low < 0.01 else 0.005
        ticks = [number * step for number in range(1, 201)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{100 * number:.3g}"))
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / 1.15, high * 1.15)


def plain_log(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Axes, optimizers: Sequence[str], more: Sequence[Artist] = ()) -> None:
    lines = legend_of(optimizers, with_markers=True)
    for line in lines:
        line.set_linewidth(2.5)
        line.set_markersize(6)
    axes.figure.legend(
        handles=[*lines, *more], loc="outside lower left", ncols=3, fontsize=SMALL, frameon=False,
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def svg_file(figure: Figure) -> str:
    """A file of its own, on white, for Markdown."""
    return _svg(figure, facecolor="white")


def svg_inline(figure: Figure, name: str, label: str) -> str:
    """An element of a page: transparent, in the page's text colour; `name` makes its ids unique."""
    text = _svg(figure, transparent=True)
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(rf'<g id="{MARK}(\w+):([^"]*)">', _of_optimizer, text)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)


def _of_optimizer(match: re.Match[str]) -> str:
    return f'<g class="of-{match[1]}"><title>{escape(unescape(match[2]))}</title>'


def _svg(figure: Figure, **options: Any) -> str:
    # Text stays text, which is small and in the page's font. The salt makes ids reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "study"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    return buffer.getvalue()
