"""What all figures share: sizes of text, legends, and how a figure becomes a file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.common.optimizers import OPTIMIZERS

# Sizes are given to each text, because matplotlib's global settings belong to the caller.
TITLE, LABEL, TICK, CAPTION = 17, 15, 13, 14


def legend_of(names: Iterable[str], with_markers: bool = False) -> list[Line2D]:
    """A line for each optimizer, once."""
    return [
        Line2D([], [], color=entry.colour, lw=4, label=entry.title,
               marker=entry.marker if with_markers else None, ms=9)
        for entry in (OPTIMIZERS[name] for name in dict.fromkeys(names))
    ]  # fmt: skip


def finish(figure: Figure, caption: str, legend: Sequence[Artist]) -> None:
    for panel in figure.axes:
        panel.tick_params(labelsize=TICK)
        panel.grid(True, which="major", color="0.88")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    if legend:
        figure.legend(
            handles=legend, loc="outside lower center", ncols=len(legend), fontsize=TICK,
            frameon=False, handlelength=1.8, columnspacing=1.2,
        )  # fmt: skip
    figure.suptitle(caption, fontsize=CAPTION, color="0.35")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
