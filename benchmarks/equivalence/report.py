"""Tables and picture of the atlas of equivalence, made from what was recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich import box
from rich.table import Table

from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import CAPTION, LABEL, TICK, TITLE, png
from benchmarks.common.reading import (
    Shape,
    among,
    many,
    mapping,
    number,
    perhaps,
    shaped,
    text,
    whole,
)
from benchmarks.common.variants import AVERAGING, EPS_INSIDE, LR_IN_VELOCITY
from benchmarks.equivalence.atlas import DTYPES, FAILED, PROMISED, UNAVAILABLE, Row
from torch_scratch_optim.equivalence import FAR

Recorded = dict[str, Any]

NONE = "-"
EXPLANATION = (
    "The largest distance from torch's loop (foreach=False) in ulps, over all options and steps: "
    "0 is the same bits in every parameter and state. far: NaN against a number, or 2⁶³ and more. "
    "Small differences of numbers near zero are many ulps. -: there is no such implementation."
)
ROW: Shape = {
    "optimizer": among(OPTIMIZERS),
    "options": text,
    "dtype": among(DTYPES),
    "compared": whole(),
    **dict.fromkeys(("max_ulps", "mismatches"), mapping(text, whole())),
    "max_difference": mapping(text, perhaps(number)),
    **dict.fromkeys(("first", UNAVAILABLE, FAILED), mapping(text, text)),
}
RECORDED: Shape = {
    "machine": {"processor": text},
    "versions": {"torch": text},
    "rows": many(shaped(ROW)),
}
HEADINGS = {
    EPS_INSIDE: ("ε inside", "the root"),
    AVERAGING: ("v ← μv", "+ (1−μ) g"),
    LR_IN_VELOCITY: ("v ← μv", "+ γ g"),
}

NARROW = {
    "default": "de-\nfault",
    "foreach": "for-\neach",
    EPS_INSIDE: "ε in\nroot",
    AVERAGING: "(1−μ)\ng",
    LR_IN_VELOCITY: "γ g",
}


def summary(rows: list[Row]) -> str:
    """Which implementations had the reference's bits in all of these rows, and which not."""
    found = [(name, _worst(rows, name)) for name in _names(rows)]
    equal = [name for name, ulps in found if ulps == 0]
    others = [f"{name} {_number(ulps)}" for name, ulps in found if ulps]
    failed = sorted({f"{name} {FAILED}" for row in rows for name in row[FAILED]})
    return f"0 ulp: {', '.join(equal) or 'none'}; " + ", ".join(others + failed)


def verdict(recorded: Recorded) -> str:
    rows, steps = recorded["rows"], recorded["settings"]["steps"]
    parts = []
    for name in PROMISED:
        mine = [row for row in rows if name in row["max_ulps"]]
        if mine:
            wrong = sum(row["mismatches"].get(name, 0) for row in mine)
            tensors = sum(row["compared"] for row in mine)
            scope = f"cases: {len(mine)}, tensors: {tensors:,}"
            parts.append(f"{name}: {wrong:,} mismatches ({scope})")
    parts += [
        f"{row['optimizer']}, {row['options']}, {row['dtype']}, {name} {FAILED}: {problem}"
        for row in rows
        for name, problem in row[FAILED].items()
    ]
    return "\n".join(parts) + f"\n{steps} steps each."


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["max_ulps"]))


def _worst(rows: list[Row], name: str) -> int | None:
    return max((row["max_ulps"][name] for row in rows if name in row["max_ulps"]), default=None)


def _number(ulps: int | None) -> str:
    if ulps is None:
        return NONE
    if ulps == FAR:
        return "far"
    return str(ulps) if ulps < 10_000 else f"{ulps:.0e}".replace("e+", "e")


def _heading(name: str) -> tuple[str, str]:
    side, _, engine = name.partition("-")
    return HEADINGS.get(name, (side, engine))


def _narrow(name: str) -> str:
    """A heading for a terminal of 80 columns."""
    side, engine = _heading(name)
    return NARROW.get(name, f"{side}\n{NARROW.get(engine, engine)}")


def _cells(recorded: Recorded) -> list[list[str]]:
    """A line for each optimizer and dtype: the worst of its options."""
    settings = recorded["settings"]
    lines = []
    for optimizer in settings["optimizers"]:
        for dtype in settings["dtypes"]:
            rows = _rows(recorded, optimizer, dtype)
            if rows:
                numbers = [_number(_worst(rows, name)) for name in settings["implementations"]]
                lines.append([OPTIMIZERS[optimizer].title, dtype, *numbers])
    return lines


def _rows(recorded: Recorded, optimizer: str, dtype: str) -> list[Row]:
    return [
        row for row in recorded["rows"] if row["optimizer"] == optimizer and row["dtype"] == dtype
    ]


def terminal_table(recorded: Recorded) -> Table:
    table = Table(title="ulps from torch's loop", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("optimizer", "dtype"):
        table.add_column(heading, no_wrap=True)
    for name in recorded["settings"]["implementations"]:
        table.add_column(_narrow(name), justify="right", no_wrap=True)
    for line in _cells(recorded):
        table.add_row(*line)
    return table


def worst_table(recorded: Recorded) -> str:
    headings = [" ".join(_heading(name)) for name in recorded["settings"]["implementations"]]
    return markdown([["optimizer", "dtype", *headings], *_cells(recorded)])


def report(recorded: Recorded) -> str:
    """equivalence.md: the worst of each optimizer and dtype, then every first mismatch."""
    settings, machine = recorded["settings"], recorded["machine"]
    parts = [
        "# Equal, or not",
        f"{machine['processor']}, torch {recorded['versions']['torch']}, {settings['steps']} "
        f"steps, seed {settings['seed']}.",
        worst_table(recorded),
        EXPLANATION,
        verdict(recorded),
        "![Largest difference of parameters](equivalence.png)",
        "## First mismatches",
        markdown(
            [
                ["optimizer", "options", "dtype", "implementation", "first mismatch", "tensors"],
                *(
                    [
                        OPTIMIZERS[row["optimizer"]].title,
                        row["options"],
                        row["dtype"],
                        name,
                        first,
                        f"{row['mismatches'][name]:,}",
                    ]
                    for row in recorded["rows"]
                    for name, first in row["first"].items()
                ),
            ],
            texts=5,
        ),
    ]
    return "\n\n".join(parts) + "\n"


NOWHERE = "0.9"  # the colour of what there is not
GAP = 0.07  # between the blocks, which are squares of length 1
LEAST, MOST = 1e-18, 10.0


def draw_atlas(recorded: Recorded) -> bytes:
    """How far the parameters went apart: white where every bit is equal.

    Rounding fades from the left of a block to its right, where numbers are more precise; a real
    difference does not.
    """
    settings = recorded["settings"]
    optimizers = [
        name
        for name in settings["optimizers"]
        if any(row["optimizer"] == name for row in recorded["rows"])
    ]
    names = settings["implementations"]
    figure = Figure(
        figsize=(2.6 + 1.25 * len(names), 2.9 + 0.95 * len(optimizers)), layout="constrained"
    )
    panel = figure.subplots()
    colours = ScalarMappable(LogNorm(LEAST, MOST, clip=True), colormaps["cividis_r"])
    for y, optimizer in enumerate(optimizers):
        for x, name in enumerate(names):
            _draw_block(panel, x, y, recorded, optimizer, name, colours)
    panel.set_xlim(-GAP, len(names))
    panel.set_ylim(len(optimizers), -GAP)
    panel.set_xticks(
        [x + (1 - GAP) / 2 for x in range(len(names))],
        ["\n".join(_heading(name)) for name in names],
        fontsize=TICK,
    )
    panel.set_yticks(
        [y + (1 - GAP) / 2 for y in range(len(optimizers))],
        [OPTIMIZERS[name].title for name in optimizers],
        fontsize=LABEL,
    )
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
        f"in each block from left to right: {', '.join(settings['dtypes'])}; from top to bottom: "
        f"the options; {settings['steps']} steps",
        fontsize=CAPTION,
        color="0.35",
    )
    return png(figure)


def _draw_block(
    panel: Axes,
    x: int,
    y: int,
    recorded: Recorded,
    optimizer: str,
    name: str,
    colours: ScalarMappable,
) -> None:
    """A line for each option case, a column for each dtype."""
    size = 1 - GAP
    centre = x + size / 2, y + size / 2
    columns = [_rows(recorded, optimizer, dtype) for dtype in recorded["settings"]["dtypes"]]
    known = [row["max_ulps"][name] for rows in columns for row in rows if name in row["max_ulps"]]
    if not known:
        panel.text(*centre, "none", ha="center", va="center", fontsize=TICK, color="0.6")
        return
    width = size / len(columns)
    for column, rows in enumerate(columns):
        height = size / max(len(rows), 1)
        for line, row in enumerate(rows):
            corner = (x + column * width, y + line * height)
            colour = _colour(row, name, colours)
            panel.add_patch(Rectangle(corner, width, height, facecolor=colour, lw=0))
    panel.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor="0.6", lw=1))
    if not any(known):
        panel.text(*centre, "0", ha="center", va="center", fontsize=TITLE, weight="bold")


def _colour(row: Row, name: str, colours: ScalarMappable) -> Any:
    if name not in row["max_ulps"]:
        return NOWHERE
    if row["max_ulps"][name] == 0:
        return "white"
    difference = row["max_difference"][name]
    return colours.to_rgba(np.array(MOST if difference is None else max(difference, LEAST)))
