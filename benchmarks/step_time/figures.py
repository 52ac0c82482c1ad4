"""The chart of step times, made from what was recorded."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import CAPTION, LABEL, TICK, TITLE, png
from benchmarks.step_time.report import Recorded, groups_of

TOP = 2.5  # the highest bar; what is higher is drawn so high, with a gap and its number
TEXT = 0.17  # the height of a number, about


def draw_ratios(recorded: Recorded) -> bytes:
    """Bars of ratios, a group for each set of parameters; below the line at 1 ours is faster."""
    rows = groups_of(recorded)
    models = list(dict.fromkeys(row.model for row in rows))
    optimizers = [name for name in OPTIMIZERS if any(row.optimizer == name for row in rows)]
    width = max(9.0, 1.5 + len(models) * (0.6 + 0.43 * len(optimizers)))
    figure = Figure(figsize=(width, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    stories = (
        (above, "Without arguments: our default ÷ torch's default",
         {(row.model, row.optimizer): row.ratio("default", "default") for row in rows}),
        (below, "The fastest of each: our best ÷ torch's best",
         {(row.model, row.optimizer): row.ratio_of_bests() for row in rows}),
    )  # fmt: skip
    for panel, title, ratios in stories:
        draw_bars(panel, models, optimizers, ratios)
        panel.set_title(title, fontsize=TITLE)
    titles = [recorded["models"][model]["title"] for model in models]
    below.set_xticks(range(len(models)), titles, fontsize=LABEL)
    patches = [Patch(color=OPTIMIZERS[name].colour, label=OPTIMIZERS[name].title)
               for name in optimizers]  # fmt: skip
    figure.legend(
        handles=patches, loc="outside lower center", ncols=6, fontsize=LABEL, frameon=False,
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    machine = recorded["machine"]
    place = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    figure.suptitle(
        f"time of a step on {place}: below the line ours is faster", fontsize=CAPTION, color="0.35"
    )
    return png(figure)


def draw_bars(
    panel: Axes,
    models: list[str],
    optimizers: list[str],
    ratios: dict[tuple[str, str], float | None],
) -> None:
    width = 0.86 / len(optimizers)
    for place, model in enumerate(models):
        for rank, optimizer in enumerate(optimizers):
            ratio = ratios.get((model, optimizer))
            x = place + (rank - (len(optimizers) - 1) / 2) * width
            if ratio is None:
                panel.text(x, 0.02, "none", ha="center", va="bottom", rotation=90, color="0.5")
                continue
            height = min(ratio, TOP)
            panel.bar(x, height, width * 0.9, color=OPTIMIZERS[optimizer].colour)
            if ratio > TOP:
                ends = (x - width / 2, x + width / 2)
                panel.plot(ends, (0.9 * TOP, 0.94 * TOP), color="white", lw=4)
            foot = 1 if 1 - TEXT < height < 1 else height  # the line must not strike a number out
            panel.text(x, foot + 0.02, f"{ratio:.2f}", ha="center", va="bottom", fontsize=11)
    panel.axhline(1, color="black", lw=2, zorder=3)
    known = [ratio for ratio in ratios.values() if ratio is not None]
    panel.set_ylim(0, max(1.3, min(max(known, default=1), TOP) * 1.12))
    panel.set_ylabel("ours ÷ torch", fontsize=LABEL)
    panel.tick_params(labelsize=TICK)
    panel.grid(True, axis="y", color="0.88")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
