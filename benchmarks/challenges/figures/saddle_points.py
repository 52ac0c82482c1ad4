"""Figures of saddle points: steps to escape, paths, and gradient noise."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    THEORY,
    Figures,
    contours,
    finish,
    label_axes,
    legend,
    line_style,
    mark_start,
    nan_for_null,
    new_figure,
)
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.common.test_functions import TEST_FUNCTIONS

FIRST_STEP = "RMSProp's first step is 10 γ, because it lacks Adam's bias correction"


def draw(results: Results) -> Figures:
    return {
        "escape": _escape_by_function(results),
        "escape_rates": _escape_by_rate(results),
        "paths": _paths(results),
        "noise": _noise(results),
    }


def _legend(results: Results, theory: bool = False) -> list[Line2D]:
    handles = legend(results["paths"]["saddle"], with_markers=True)
    return [*handles, Line2D([], [], **THEORY, label="SGD, theory")] if theory else handles


def _plot_steps(panel: Axes, results: Results, key: str, lr: float) -> None:
    distances = [10.0**-exponent for exponent in results["exponents"]]
    for name, by_rate in results["escape_steps"][key].items():
        steps = nan_for_null(by_rate[f"{lr:g}"])[:-1]  # without the start on the ridge
        panel.plot(distances, steps, **line_style(name, with_marker=True))
    if key == "saddle":
        panel.plot(distances, results["closed_form"][f"{lr:g}"], **THEORY, zorder=4)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.invert_xaxis()


def _escape_by_function(results: Results) -> Figure:
    figure, lr = new_figure(6.6), results["rates"][0]
    panels = figure.subplots(1, 3, sharey=True)
    for panel, key in zip(panels, results["escape_steps"], strict=True):
        _plot_steps(panel, results, key, lr)
        panel.set_xticks([1e-1, 1e-4, 1e-8, 1e-12, 1e-16])
        offset = "distance from the inflection" if key == "cubic" else "distance y₀ from the ridge"
        label_axes(panel, f"{TEST_FUNCTIONS[key].title} ${TEST_FUNCTIONS[key].formula}$", offset)
    panels[0].set_ylabel("steps to escape", fontsize=15)
    finish(figure, f"learning rate {lr:g} for all. {FIRST_STEP}.\n"
           "A line that ends: no escape within the steps given.",
           _legend(results, theory=True))  # fmt: skip
    return figure


def _escape_by_rate(results: Results) -> Figure:
    figure = new_figure(6.4)
    panels = figure.subplots(1, len(results["rates"]), sharey=True)
    for panel, lr in zip(panels, results["rates"], strict=True):
        _plot_steps(panel, results, "saddle", lr)
        panel.set_xticks([1e-1, 1e-8, 1e-16])
        label_axes(panel, f"γ = {lr:g}", "distance y₀")
    panels[0].set_ylabel("steps to escape", fontsize=15)
    finish(figure, f"steps to leave x² − y². {FIRST_STEP}.", _legend(results, theory=True))
    return figure


def _paths(results: Results) -> Figure:
    figure = new_figure(6.0)
    *planes, line = figure.subplots(1, 3)
    for panel, key in zip(planes, ("saddle", "monkey"), strict=True):
        objective = TEST_FUNCTIONS[key]
        contours(figure, panel, objective)
        for name, path in results["paths"][key].items():
            x, y = zip(*path, strict=True)
            panel.plot(x, y, **{**line_style(name, with_marker=True), "lw": 2, "ms": 6})
        mark_start(panel, *objective.start)
        panel.set_xticks([-1, 0, 1])
        panel.set_yticks([-1, 0, 1])
        label_axes(panel, f"${objective.formula}$, from y₀ = {objective.start[1]:g}", "x", "y")
    cubic = TEST_FUNCTIONS["cubic"]
    for name, path in results["paths"]["cubic"].items():
        line.plot([point[0] for point in path], **line_style(name))
    mark_start(line, 0, cubic.start[0])
    line.axhline(0, color="black", lw=1)
    line.set_ylim(-1.5, 1.1)
    line.set_xlim(-2, 100)
    label_axes(line, f"${cubic.formula}$: past the inflection at 0?", "step", "x")
    finish(figure, f"learning rate {results['path_rate']:g} for all; square: start. {FIRST_STEP}.",
           _legend(results))  # fmt: skip
    return figure


def _noise(results: Results) -> Figure:
    noise, net = results["noise"], results["deep_net"]
    figure = new_figure(6.4)
    saddle, plateau, variance = figure.subplots(1, 3)
    for name, by_batch in noise["steps"].items():
        medians = nan_for_null(by_batch[str(batch)]["median"] for batch in noise["batches"])
        saddle.plot(noise["batches"], medians, **line_style(name, with_marker=True))
    saddle.set_xscale("log", base=2)
    saddle.set_xticks(noise["batches"][::2], [str(batch) for batch in noise["batches"][::2]])
    saddle.set_ylim(0)
    label_axes(saddle, f"Saddle, from y₀ = 0:\nsteps to escape, γ = {noise['lr']:g}",
               "batch size B")  # fmt: skip

    batches = [int(batch) for batch in net["by_batch"]]
    rows = list(net["by_batch"].values())
    medians = nan_for_null(row["median_steps"] for row in rows)
    plateau.plot(batches, medians, **line_style(net["optimizer"], with_marker=True))
    for batch, steps, row in zip(batches, medians, rows, strict=True):
        if math.isfinite(steps):
            plateau.annotate(f"{row['images_seen']:,.0f}\nimages", (batch, steps), (9, 6),
                             textcoords="offset points", ha="left", fontsize=13)  # fmt: skip
    plateau.set_ylim(0, 1.35 * max((step for step in medians if math.isfinite(step)), default=1))
    label_axes(plateau, "Deep sigmoid net:\nsteps to leave the plateau", "batch size B")
    variance.plot(batches, [row["gradient_variance"] for row in rows], "o-", color="black", lw=3.5,
                  ms=9, label="variance of a batch")  # fmt: skip
    variance.plot(batches, [row["gradient_norm_squared"] for row in rows], **THEORY,
                  label="‖full gradient‖²")  # fmt: skip
    variance.set_yscale("log")
    variance.legend(fontsize=13, frameon=False)
    label_axes(variance, "Deep sigmoid net:\nnoise in the gradient", "batch size B")
    for panel in (plateau, variance):
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.set_xlim(batches[0] / 2, batches[-1] * 5)
    caption = f"deep net: {OPTIMIZERS[net['optimizer']].title}, learning rate {net['lr']:g}"
    if math.isfinite(medians[0]) and math.isfinite(medians[-1]):
        caption += (
            f"; {batches[-1] // batches[0]} × the batch leaves the plateau in "
            f"1/{medians[0] / medians[-1]:.1f} of the steps"
        )
    finish(figure, f"{caption}.\nOn the saddle {FIRST_STEP}.", _legend(results))
    return figure
