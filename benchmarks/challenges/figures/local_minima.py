"""Figures of local minima: paths, maps of outcomes, and two risks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    Figures,
    finish,
    label_axes,
    line_style,
    mark_start,
    new_figure,
)
from benchmarks.challenges.local_minima import (
    CYCLES,
    EMPIRICAL,
    GLOBAL,
    LEFT,
    LOCAL,
    MOVING,
    TRUE,
)
from benchmarks.challenges.optimizers import CORRECTED, OPTIMIZERS
from benchmarks.common.plots import LABEL, TICK, TITLE
from benchmarks.common.test_functions import Objective

# The global minimum has the optimizer's colour, other outcomes have greys and hatches.
FILLS: dict[str, dict[str, Any]] = {
    LOCAL: {"facecolor": "0.72"},
    CYCLES: {"facecolor": "white", "hatch": "ooo", "edgecolor": "0.45"},
    LEFT: {"facecolor": "white", "hatch": "xx", "edgecolor": "0.72"},
    MOVING: {"facecolor": "white"},
}
MEANINGS = {
    LOCAL: "ends in the local minimum", CYCLES: "cycles", LEFT: "leaves the domain",
    MOVING: "still moving",
}  # fmt: skip


def draw(results: Results) -> Figures:
    return {
        "paths": _paths(results),
        "outcome_map": _map(results, ["constant"]),
        "schedules": _map(results, list(results["outcomes"])),
        "risks": _risks(results),
    }


def _curve(objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    ((low, high),) = objective.domain
    x = torch.linspace(low, high, 400, dtype=torch.float64)
    return x.numpy(), objective.value(x[:, None]).numpy()


def _mark_minima(panel: Axes, results: Results) -> None:
    for kind, marker in ((LOCAL, "v"), (GLOBAL, "*")):
        minimum = results["minima"][kind]
        panel.plot(minimum["x"], minimum["f"], marker, color="black", ms=17, zorder=5)


def _paths(results: Results) -> Figure:
    figure = new_figure()
    paths = results["paths"]
    columns = (len(paths) + 2) // 2
    panels = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False).flatten()
    start, start_value = results["start"], TRUE.value(torch.tensor([results["start"]])).item()
    for panel in panels[: 1 + len(paths)]:
        panel.plot(*_curve(TRUE), color="0.6", lw=2)
        mark_start(panel, start, start_value)
    for panel, (name, path) in zip(panels[1:], paths.items(), strict=False):
        x = torch.tensor(path["x"], dtype=torch.float64)
        panel.plot(
            x,
            TRUE.value(x[:, None]),
            **{**line_style(name, with_marker=True), "lw": 1.5},
            alpha=0.7,
        )
        panel.plot(
            x[-1], TRUE.value(x[-1:]), "o", ms=20, mfc="none", mec="black", mew=2.5, zorder=6
        )
        minimum = {GLOBAL: "global minimum", LOCAL: "local minimum"}
        outcome = minimum.get(path["outcome"], path["outcome"])
        title = OPTIMIZERS[name].title
        label_axes(panel, f"{title}\nγ = {path['lr']:.2g}: {outcome}")
    first, minima = panels[0], results["minima"]
    _mark_minima(first, results)
    first.annotate(f"local\n{minima[LOCAL]['x']:.4f}", (minima[LOCAL]["x"], minima[LOCAL]["f"]),
                   (minima[LOCAL]["x"], -0.95), ha="center", fontsize=LABEL)  # fmt: skip
    first.annotate(f"global\n{minima[GLOBAL]['x']:.4f}", (minima[GLOBAL]["x"], 0),
                   (minima[GLOBAL]["x"], -0.6), ha="center", fontsize=LABEL)  # fmt: skip
    first.text(start + 0.12, 0.9, "start", fontsize=LABEL)
    label_axes(first, f"f(x) = ${TRUE.formula}$")
    for above, panel in zip(panels, panels[columns:], strict=False):
        if not panel.lines:
            panel.set_axis_off()
            above.tick_params(labelbottom=True)
    finish(figure, "each optimizer at the middle of the learning rates with its best outcome; "
           "square: start, circle: end")  # fmt: skip
    return figure


def _map(results: Results, schedules: list[str]) -> Figure:
    """A row for each optimizer and schedule, a column for each learning rate."""
    rates, outcomes = results["rates"], results["outcomes"]
    names = list(outcomes[schedules[0]])
    rows = [(name, schedule) for name in names for schedule in schedules]
    figure = new_figure(5.2 if len(schedules) == 1 else 7.6)
    panel = figure.subplots()
    for y, (name, schedule) in enumerate(rows):
        for x, outcome in enumerate(outcomes[schedule][name]):
            fill = FILLS.get(outcome, {"facecolor": OPTIMIZERS[name].colour})
            panel.add_patch(Rectangle((x, y + 0.06), 1, 0.88, **{"edgecolor": "white", **fill}))
        if len(schedules) > 1:
            panel.text(-0.3, y + 0.5, schedule, ha="right", va="center", fontsize=TICK)
    for number, name in enumerate(names):
        middle, left = (number + 0.5) * len(schedules), -0.5 if len(schedules) == 1 else -5.3
        title = OPTIMIZERS[name].title.replace(" (", "\n(")
        panel.text(left, middle, title, ha="right", va="center", fontsize=TITLE,
                   fontweight="bold", color=OPTIMIZERS[name].colour)  # fmt: skip
        if number and len(schedules) > 1:
            panel.axhline(number * len(schedules), color="black", lw=1.2)
    panel.set_xlim(0, len(rates))
    panel.set_ylim(len(rows), 0)
    decades = [k for k, lr in enumerate(rates) if f"{lr:e}".startswith("1.000000e")]
    panel.set_xticks([k + 0.5 for k in decades], [f"{rates[k]:g}" for k in decades])
    panel.set_yticks([])
    label_axes(panel, _title(results, schedules), "learning rate γ")
    handles = [Patch(facecolor="0.2", label="optimizer's colour: global minimum")]
    handles += [Patch(**{"edgecolor": "0.5", **fill}, label=MEANINGS[outcome])
                for outcome, fill in FILLS.items()]  # fmt: skip
    finish(figure, f"x·cos(πx) from x = {results['start']:g}, {results['steps']} steps"
           + _first_steps(results["paths"]), handles)  # fmt: skip
    panel.grid(False)
    panel.spines[:].set_visible(False)
    return figure


def _first_steps(paths: Results) -> str:
    """What RMSProp's two rows differ in, where there are two."""
    if CORRECTED not in paths:
        return ""
    plain, corrected = (paths[name]["first_step"] for name in ("rmsprop", CORRECTED))
    return f"; RMSProp's first step is {plain:.1f} γ, bias-corrected {corrected:.1f} γ"


def _title(results: Results, schedules: list[str]) -> str:
    bands = results["bands"]
    if len(schedules) == 1:
        counts = {name: row["rates"] for name, row in bands["constant"].items()}
        widest = max(counts, key=counts.__getitem__)
        return (
            f"{OPTIMIZERS[widest].title} reaches the global minimum at {counts[widest]} of "
            f"{len(results['rates'])} learning rates"
        )
    totals = {s: sum(row["rates"] for row in bands[s].values()) for s in schedules}
    return "Runs in the global minimum: " + ", ".join(f"{s} {n}" for s, n in totals.items())


def _risks(results: Results) -> Figure:
    figure = new_figure(6.2)
    panel = figure.subplots()
    x, f = _curve(TRUE)
    panel.plot(x, f, color="black", lw=4, label=f"true risk ${TRUE.formula}$")
    panel.plot(*_curve(EMPIRICAL), color="0.5", lw=3, ls=(0, (3, 1.5)),
               label=f"empirical risk ${EMPIRICAL.formula}$")  # fmt: skip
    for kind, shade, side in (("true", "black", 1), ("empirical", "0.4", -1)):
        x_min, f_min = results["risks"][kind][GLOBAL]["x"], results["risks"][kind][GLOBAL]["f"]
        panel.plot(x_min, f_min, "*", color=shade, ms=22, zorder=5)
        panel.annotate(
            f"{kind}: {x_min:.3f}", (x_min, f_min), (x_min + side * 0.42, f_min - 0.1),
            ha="center", va="center", fontsize=LABEL, arrowprops={"arrowstyle": "-", "lw": 1.5},
        )  # fmt: skip
    panel.set_ylim(-1.6, 2.5)
    panel.legend(fontsize=LABEL, frameon=False, loc="upper left")
    label_axes(
        panel, "The minimizer of the empirical risk is not that of the true risk", "x", "risk"
    )
    finish(figure, "stars: the minimizers")
    return figure
