"""The picture of the atlas, made from what was recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import CAPTION, LABEL, TICK, TITLE, png
from benchmarks.equivalence.atlas import Comparison
from benchmarks.equivalence.report import Recorded

ABSENT = "0.9"  # the colour of an implementation that there is not
NOT_FINITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "0.35", "hatch": "/////", "lw": 0}
LEAST, MOST = 1e-18, 10.0
BLOCK = 0.93  # the width of a block; the rest of 1 is between blocks
GAP = 1.6  # rows between two optimizers
ROW = 0.19  # inches


def draw_atlas(recorded: Recorded) -> bytes:
    """How far the parameters went apart: white where every bit is equal, a row for each option.

    Rounding fades from the left of a block to its right, where numbers are more precise; a real
    difference does not.
    """
    settings = recorded["settings"]
    names, dtypes = settings["implementations"], settings["dtypes"]
    cases = {
        name: options
        for name in settings["optimizers"]
        if (options := _options(recorded["rows"], name))
    }
    height = sum(len(options) + GAP for options in cases.values())
    figure = Figure(figsize=(5.5 + 1.1 * len(names), 3 + ROW * height), layout="constrained")
    panel = figure.subplots()
    colours = ScalarMappable(LogNorm(LEAST, MOST, clip=True), colormaps["cividis_r"])
    rows = {(row["optimizer"], row["options"], row["dtype"]): row for row in recorded["rows"]}
    ticks: list[tuple[float, str]] = []
    top = GAP / 2
    for optimizer, options in cases.items():
        panel.text(0, top - 0.2, OPTIMIZERS[optimizer].title, fontsize=LABEL, weight="bold")
        for x, name in enumerate(names):
            block = [[rows.get((optimizer, o, dtype), {}) for dtype in dtypes] for o in options]
            _draw_block(panel, x, top, block, name, colours)
        ticks += [(top + y + 0.5, text) for y, text in enumerate(options)]
        top += len(options) + GAP
    panel.set_xlim(-0.02, len(names))
    panel.set_ylim(top - GAP / 2, -GAP / 2)
    panel.set_xticks(
        [x + BLOCK / 2 for x in range(len(names))],
        ["\n".join(name.rsplit("-", 1)) for name in names],
        fontsize=TICK,
    )
    panel.set_yticks([y for y, _ in ticks], [text for _, text in ticks], fontsize=10)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(colours, ax=panel, pad=0.01, fraction=0.03)
    bar.set_label("largest difference of parameters", fontsize=TICK)
    bar.ax.tick_params(labelsize=TICK)
    figure.suptitle(
        "White: the bits of torch's loop. Rounding fades with precision, another formula does not",
        fontsize=TITLE,
    )
    panel.set_xlabel(
        f"in each block from left to right: {', '.join(dtypes)}; {settings['steps']} steps",
        fontsize=CAPTION,
        color="0.35",
    )
    figure.legend(
        handles=[
            Patch(**NOT_FINITE, label="NaN or infinite in one of the two"),
            Patch(facecolor=ABSENT, label="not compared"),
        ],
        loc="outside lower center", ncols=2, fontsize=TICK, frameon=False,
    )  # fmt: skip
    return png(figure)


def _options(rows: list[Comparison], optimizer: str) -> list[str]:
    """The option cases of an optimizer, in order."""
    return list(dict.fromkeys(row["options"] for row in rows if row["optimizer"] == optimizer))


def _draw_block(
    panel: Axes,
    x: int,
    top: float,
    block: list[list[Comparison]],
    name: str,
    colours: ScalarMappable,
) -> None:
    """A line for each option case, a column for each dtype."""
    ulps = [row.get("max_ulps", {}).get(name) for line in block for row in line]
    middle = x + BLOCK / 2, top + len(block) / 2
    if all(distance is None for distance in ulps):
        panel.text(*middle, "none", ha="center", va="center", fontsize=TICK, color="0.6")
        return
    width = BLOCK / len(block[0])
    for y, line in enumerate(block):
        for column, row in enumerate(line):
            corner = x + column * width, top + y
            panel.add_patch(Rectangle(corner, width, 1, **_look(row, name, colours)))
    panel.add_patch(Rectangle((x, top), BLOCK, len(block), fill=False, edgecolor="0.6", lw=1))
    if not any(ulps):
        panel.text(*middle, "0", ha="center", va="center", fontsize=TITLE, weight="bold")


def _look(row: Comparison, name: str, colours: ScalarMappable) -> dict[str, Any]:
    if name not in row.get("max_ulps", {}):
        return {"facecolor": ABSENT, "lw": 0}
    if row["max_ulps"][name] == 0:
        return {"facecolor": "white", "lw": 0}
    difference = row["max_difference"][name]
    if difference is None:
        return NOT_FINITE
    return {"facecolor": colours.to_rgba(np.array(max(difference, LEAST))), "lw": 0}
