"""Pictures of saddle points: how long to escape, on which way, and what noise does."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, numbers, slide
from benchmarks.common.landscapes import LANDSCAPES, Landscape
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import finish, legend_of

BLACK: dict[str, Any] = {"color": "black", "lw": 2.5, "ls": (0, (3, 2))}


def draw(facts: Facts) -> Pictures:
    return {
        "escape": _by_landscape(facts),
        "escape_rates": _by_rate(facts),
        "paths": _paths(facts),
        "noise": _noise(facts),
    }


def _names(facts: Facts) -> list[str]:
    return list(facts["paths"]["saddle"])


def _steps(panel: Axes, facts: Facts, landscape: str, lr: float) -> None:
    distances = [10.0**-exponent for exponent in facts["exponents"]]
    for name, by_rate in facts["escape_steps"][landscape].items():
        steps = numbers(by_rate[f"{lr:g}"])[:-1]  # without the start on the ridge
        panel.plot(distances, steps, **look(name, with_marker=True))
    if landscape == "saddle":
        panel.plot(distances, facts["closed_form"][f"{lr:g}"], **BLACK, zorder=4)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.invert_xaxis()
    panel.set_xticks([1e-1, 1e-4, 1e-8, 1e-12, 1e-16])


def _by_landscape(facts: Facts) -> Figure:
    figure, lr = slide(6.2), facts["rates"][0]
    panels = figure.subplots(1, 3, sharey=True)
    ridges = {"saddle": "distance y₀ from the ridge", "monkey": "distance y₀ from the ridge",
              "cubic": "distance from the level place"}  # fmt: skip
    for panel, (name, ridge) in zip(panels, ridges.items(), strict=True):
        _steps(panel, facts, name, lr)
        label(panel, f"{LANDSCAPES[name].title} ${LANDSCAPES[name].formula}$", ridge)
    panels[0].set_ylabel("steps to escape", fontsize=15)
    legend = [*legend_of(_names(facts), True), Line2D([], [], **BLACK, label="SGD in theory")]
    finish(figure, f"learning rate {lr:g} for all; nobody leaves the saddle from y₀ = 0; "
           "a line that ends: no escape in time", legend)  # fmt: skip
    return figure


def _by_rate(facts: Facts) -> Figure:
    figure = slide(6.2)
    panels = figure.subplots(1, len(facts["rates"]), sharey=True)
    for panel, lr in zip(panels, facts["rates"], strict=True):
        _steps(panel, facts, "saddle", lr)
        panel.set_xticks([1e-1, 1e-8, 1e-16])
        label(panel, f"γ = {lr:g}", "distance y₀")
    panels[0].set_ylabel("steps to escape", fontsize=15)
    legend = [*legend_of(_names(facts), True), Line2D([], [], **BLACK, label="SGD in theory")]
    finish(
        figure, "the saddle x² − y² from ever closer to its ridge, at each learning rate", legend
    )
    return figure


def contours(panel: Axes, landscape: Landscape, levels: Any = 25) -> None:
    (left, right), (low, high) = landscape.domain
    x = torch.linspace(left, right, 160, dtype=torch.float64)
    y = torch.linspace(low, high, 160, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    height = landscape.at(grid)
    panel.contourf(x, y, height, levels=levels, cmap="Greys", alpha=0.55)
    panel.contour(x, y, height, levels=levels, colors="0.6", linewidths=0.7)
    panel.set_xlim(left, right)
    panel.set_ylim(low, high)


def _paths(facts: Facts) -> Figure:
    figure = slide(5.8)
    panels = figure.subplots(1, 3)
    for panel, name in zip(panels[:2], ("saddle", "monkey"), strict=True):
        landscape = LANDSCAPES[name]
        contours(panel, landscape)
        for optimizer, path in facts["paths"][name].items():
            x, y = zip(*path, strict=True)
            panel.plot(x, y, **{**look(optimizer, with_marker=True), "lw": 2, "ms": 6})
        panel.plot(*landscape.start, "s", color="black", ms=11, zorder=5)
        panel.set_xticks([-1, 0, 1])
        panel.set_yticks([-1, 0, 1])
        label(panel, f"${landscape.formula}$, from y₀ = {landscape.start[1]:g}", "x", "y")
    cubic = LANDSCAPES["cubic"]
    for optimizer, path in facts["paths"]["cubic"].items():
        panels[2].plot([point[0] for point in path], **look(optimizer))
    panels[2].axhline(0, color="black", lw=1)
    panels[2].set_ylim(-1.5, 1.1)
    panels[2].set_xlim(0, 100)
    label(panels[2], f"${cubic.formula}$: who gets below 0?", "step", "x")
    finish(figure, f"learning rate {facts['shown_rate']:g} for all; square: the start",
           legend_of(_names(facts), True))  # fmt: skip
    return figure


def _noise(facts: Facts) -> Figure:
    noise, net = facts["noise"], facts["deep_net"]
    figure = slide(6.2)
    saddle, plateau, variance = figure.subplots(1, 3)
    for name, by_batch in noise["steps"].items():
        medians = numbers(by_batch[str(batch)]["median"] for batch in noise["batches"])
        saddle.plot(noise["batches"], medians, **look(name, with_marker=True))
    saddle.set_xscale("log", base=2)
    saddle.set_xticks(noise["batches"][::2], [str(batch) for batch in noise["batches"][::2]])
    saddle.set_ylim(0)
    label(saddle, "Saddle, from y₀ = 0:\nsteps to escape", "batch size B")

    batches = [int(batch) for batch in net["by_batch"]]
    rows = list(net["by_batch"].values())
    its = look(net["optimizer"], with_marker=True)
    medians = numbers(row["median_steps"] for row in rows)
    plateau.plot(batches, medians, **its)
    for batch, steps, row in zip(batches, medians, rows, strict=True):
        if math.isfinite(steps):
            plateau.annotate(f"{row['images_seen']:,.0f}\nimages", (batch, steps), (9, 6),
                             textcoords="offset points", ha="left", fontsize=13)  # fmt: skip
    plateau.set_ylim(0, 1.35 * max((step for step in medians if math.isfinite(step)), default=1))
    label(plateau, "Deep sigmoid net:\nsteps to leave the plateau", "batch size B")
    variance.plot(batches, [row["gradient_variance"] for row in rows], "o-", color="black", lw=3.5,
                  ms=9, label="variance of a batch")  # fmt: skip
    variance.plot(batches, [row["gradient_norm_squared"] for row in rows], **BLACK,
                  label="‖full gradient‖²")  # fmt: skip
    variance.set_yscale("log")
    variance.legend(fontsize=13, frameon=False)
    label(variance, "Deep sigmoid net:\nnoise in the gradient", "batch size B")
    for panel in (plateau, variance):
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.set_xlim(batches[0] / 2, batches[-1] * 5)
    story = f"deep net: {OPTIMIZERS[net['optimizer']].title}, learning rate {net['lr']:g}"
    if math.isfinite(medians[0]) and math.isfinite(medians[-1]):
        story += (
            f"; {batches[-1] // batches[0]} × the batch leaves the plateau in "
            f"1/{medians[0] / medians[-1]:.1f} of the steps"
        )
    finish(figure, story, legend_of(_names(facts), True))
    return figure
