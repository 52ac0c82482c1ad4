"""Pictures of local minima: paths, maps of who ends where, and two risks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from benchmarks.challenges.local_minima import (
    CYCLES,
    EMPIRICAL,
    GLOBAL,
    LEFT,
    LOCAL,
    ON_THE_WAY,
    TRUE,
)
from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.common.landscapes import Landscape
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import LABEL, TICK, TITLE, finish

# Where a walk ends, in greys and hatches: the global minimum alone has the optimizer's colour.
FILLS: dict[str, dict[str, Any]] = {
    LOCAL: {"facecolor": "0.72"},
    CYCLES: {"facecolor": "white", "hatch": "ooo", "edgecolor": "0.45"},
    LEFT: {"facecolor": "white", "hatch": "xx", "edgecolor": "0.72"},
    ON_THE_WAY: {"facecolor": "white"},
}
MEANINGS = {
    LOCAL: "ends in the local minimum", CYCLES: "cycles", LEFT: "leaves the domain",
    ON_THE_WAY: "still on its way",
}  # fmt: skip


def draw(facts: Facts) -> Pictures:
    return {
        "paths": _paths(facts),
        "outcome_map": _map(facts, ["constant"]),
        "schedules": _map(facts, list(facts["outcomes"])),
        "risks": _risks(facts),
    }


def _curve(landscape: Landscape) -> tuple[np.ndarray, np.ndarray]:
    ((low, high),) = landscape.domain
    x = torch.linspace(low, high, 400, dtype=torch.float64)
    return x.numpy(), landscape.at(x[:, None]).numpy()


def _mark_minima(panel: Axes, facts: Facts) -> None:
    for kind, marker in ((LOCAL, "v"), (GLOBAL, "*")):
        its = facts["minima"][kind]
        panel.plot(its["x"], its["f"], marker, color="black", ms=17, zorder=5)


def _paths(facts: Facts) -> Figure:
    figure = slide()
    paths = facts["paths"]
    panels = figure.subplots(2, (len(paths) + 2) // 2, sharex=True, sharey=True, squeeze=False)
    panels = panels.flatten()
    for panel in panels:
        panel.plot(*_curve(TRUE), color="0.6", lw=2)
    for panel, (name, path) in zip(panels[1:], paths.items(), strict=False):
        x = torch.tensor(path["x"], dtype=torch.float64)
        panel.plot(x, TRUE.at(x[:, None]), **{**look(name, with_marker=True), "lw": 1.5}, alpha=0.7)
        panel.plot(x[-1], TRUE.at(x[-1:]), "o", ms=20, mfc="none", mec="black", mew=2.5, zorder=6)
        place = {GLOBAL: "global minimum", LOCAL: "local minimum"}
        label(panel, f"{OPTIMIZERS[name].title}, γ = {path['lr']:.2g}:\n"
              f"{place.get(path['outcome'], path['outcome'])}")  # fmt: skip
    first, minima = panels[0], facts["minima"]
    _mark_minima(first, facts)
    first.annotate(f"local\n{minima[LOCAL]['x']:.4f}", (minima[LOCAL]["x"], minima[LOCAL]["f"]),
                   (minima[LOCAL]["x"], -0.95), ha="center", fontsize=LABEL)  # fmt: skip
    first.annotate(f"global\n{minima[GLOBAL]['x']:.4f}", (minima[GLOBAL]["x"], 0),
                   (minima[GLOBAL]["x"], -0.6), ha="center", fontsize=LABEL)  # fmt: skip
    first.plot(facts["start"], TRUE.at(torch.tensor([facts["start"]])), "s", color="black", ms=11)
    first.text(facts["start"] + 0.12, 0.9, "start", fontsize=LABEL)
    label(first, f"f(x) = ${TRUE.formula}$")
    for panel in panels[1 + len(paths) :]:
        panel.set_axis_off()
    finish(figure, "each optimizer at a learning rate in the middle of its best band; "
           "circle: where it ends", [])  # fmt: skip
    return figure


def _map(facts: Facts, schedules: list[str]) -> Figure:
    """A row for each optimizer and schedule, a column for each learning rate."""
    rates, outcomes = facts["rates"], facts["outcomes"]
    names = list(outcomes[schedules[0]])
    rows = [(name, schedule) for name in names for schedule in schedules]
    figure = slide(5.2 if len(schedules) == 1 else 7.6)
    panel = figure.subplots()
    for y, (name, schedule) in enumerate(rows):
        for x, outcome in enumerate(outcomes[schedule][name]):
            fill = FILLS.get(outcome, {"facecolor": OPTIMIZERS[name].colour})
            panel.add_patch(Rectangle((x, y + 0.06), 1, 0.88, **{"edgecolor": "white", **fill}))
        if len(schedules) > 1:
            panel.text(-0.3, y + 0.5, schedule, ha="right", va="center", fontsize=TICK)
    for place, name in enumerate(names):
        middle, left = (place + 0.5) * len(schedules), -0.5 if len(schedules) == 1 else -5.3
        panel.text(left, middle, OPTIMIZERS[name].title, ha="right", va="center", fontsize=TITLE,
                   fontweight="bold", color=OPTIMIZERS[name].colour)  # fmt: skip
        if place and len(schedules) > 1:
            panel.axhline(place * len(schedules), color="black", lw=1.2)
    panel.set_xlim(0, len(rates))
    panel.set_ylim(len(rows), 0)
    decades = [k for k, lr in enumerate(rates) if f"{lr:e}".startswith("1.000000e")]
    panel.set_xticks([k + 0.5 for k in decades], [f"{rates[k]:g}" for k in decades])
    panel.set_yticks([])
    label(panel, _story(facts, schedules), "learning rate γ")
    handles = [Patch(facecolor="0.2", label="optimizer's colour: global minimum")]
    handles += [Patch(**{"edgecolor": "0.5", **fill}, label=MEANINGS[outcome])
                for outcome, fill in FILLS.items()]  # fmt: skip
    finish(figure, f"x·cos(πx) from x = {facts['start']:g}, {facts['steps']} steps", handles)
    panel.grid(False)
    panel.spines[:].set_visible(False)
    return figure


def _story(facts: Facts, schedules: list[str]) -> str:
    bands = facts["bands"]
    if len(schedules) == 1:
        widest = max(bands["constant"], key=lambda name: bands["constant"][name]["rates"])
        its = bands["constant"][widest]
        return (
            f"Who finds the global minimum? {OPTIMIZERS[widest].title} at "
            f"{its['rates']} of {len(facts['rates'])} learning rates"
        )
    total = {s: sum(its["rates"] for its in bands[s].values()) for s in schedules}
    return "Cells in the global minimum: " + ", ".join(f"{s} {n}" for s, n in total.items())


def _risks(facts: Facts) -> Figure:
    figure = slide(6.2)
    panel = figure.subplots()
    x, f = _curve(TRUE)
    panel.plot(x, f, color="black", lw=4, label=f"true risk ${TRUE.formula}$")
    panel.plot(*_curve(EMPIRICAL), color="0.5", lw=3, ls=(0, (3, 1.5)),
               label=f"empirical risk ${EMPIRICAL.formula}$")  # fmt: skip
    for kind, shade, side in (("true", "black", 1), ("empirical", "0.4", -1)):
        its = facts["risks"][kind][GLOBAL]
        panel.plot(its["x"], its["f"], "*", color=shade, ms=22, zorder=5)
        panel.annotate(
            f"{kind}: {its['x']:.3f}", (its["x"], its["f"]),
            (its["x"] + side * 0.42, its["f"] - 0.1), ha="center", va="center",
            fontsize=LABEL, arrowprops={"arrowstyle": "-", "lw": 1.5},
        )  # fmt: skip
    panel.set_ylim(-1.6, 2.5)
    panel.legend(fontsize=LABEL, frameon=False, loc="upper left")
    label(panel, "The best of what we see is not the best of what is", "x", "risk")
    finish(figure, "stars: the minimizers", [])
    return figure
