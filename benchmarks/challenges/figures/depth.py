"""Figures of depth: the first layer's step against ε, float32 against float64, training."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.depth import CHANCE
from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    THEORY,
    Figures,
    finish,
    label_axes,
    legend,
    line_style,
    nan_for_null,
    new_figure,
)
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.common.plots import LABEL, TICK

GREYS = ("0.75", "0.55", "0.35", "0.0")
MARKERS = ("o", "s", "^", "D")
LINES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (2, 1.2)), (0, (1, 1)))


def draw(results: Results) -> Figures:
    return {
        "first_step": _first_step(results),
        "float32": _dtypes(results),
        "training": _training(results["training"]),
    }


def _points(name: str) -> dict[str, Any]:
    return {**line_style(name, with_marker=True), "ls": ""}


def _first_step(results: Results) -> Figure:
    figure = new_figure(6.8)
    by_depth, by_eps = figure.subplots(1, 2)
    eps_axis = results["epsilons"]
    for name, steps in results["steps"].items():
        default, colour = results["default_eps"][name], OPTIMIZERS[name].colour
        row = steps[f"{default:g}"]
        by_depth.plot(results["depths"], row["measured"], **_points(name))
        by_depth.plot(results["depths"], row["theory"], **{**THEORY, "color": colour})
        halving = results["halving"][name]
        measured, theory = (
            nan_for_null(halving[f"{eps:g}"][key] for eps in eps_axis)
            for key in ("measured", "theory")
        )
        if name != "adagrad":  # whose first step is Adam's
            by_eps.plot(eps_axis, measured, **_points(name))
            by_eps.plot(eps_axis, theory, **{**THEORY, "color": colour})
        depth = halving[f"{default:g}"]["measured"]
        by_eps.plot(default, depth, "o", ms=20, mfc="none", mec=colour, mew=3)
        offset, side = ((14, -20), "left") if name == "rmsprop" else ((-14, 10), "right")
        by_eps.annotate(f"{OPTIMIZERS[name].title}: {depth:.1f}", (default, depth), offset,
                        textcoords="offset points", ha=side, fontsize=LABEL,
                        color=colour)  # fmt: skip
    by_depth.axhline(0.5, color="black", lw=1)
    by_depth.set_yscale("log")
    by_depth.set_ylim(1e-4, 2)
    by_depth.set_xlim(0, 14)
    label_axes(by_depth, "First step of the first layer, default ε", "hidden layers",
               "step ÷ scale-free step")  # fmt: skip
    by_eps.set_xscale("log")
    by_eps.invert_xaxis()
    by_eps.set_ylim(0, 18)
    label_axes(by_eps, "Depth at which that step halves", "ε", "hidden layers")
    handles = legend(results["steps"], with_markers=True)
    for handle in handles:
        handle.set_linestyle("")
    finish(figure, f"sigmoid nets of width {results['width']}, torch's initialisation; dashed: "
           "predicted, no net run; circle: default ε. AdaGrad's first step is Adam's.",
           [*handles, Line2D([], [], **THEORY, label="theory")])  # fmt: skip
    return figure


def _dtypes(results: Results) -> Figure:
    figure = new_figure(6.4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (dtype, by_eps) in zip(panels, results["dtypes"].items(), strict=True):
        for (eps, steps), shade, marker in zip(by_eps.items(), GREYS, MARKERS, strict=True):
            panel.plot(results["depths"], steps, color=shade, marker=marker, lw=3, ms=7,
                       label=f"ε = {eps}")  # fmt: skip
        panel.axhline(1, color="black", lw=1)
        panel.set_yscale("log")
        panel.set_ylim(1e-6, 1e12)
        label_axes(panel, dtype, "hidden layers")
    panels[0].set_ylabel("step ÷ scale-free step", fontsize=LABEL)
    panels[0].text(1, 3e9, f"for |g| < {results['underflow']:.0e} the second moment\nunderflows, "
                   "and the step is γ·g/ε", fontsize=TICK)  # fmt: skip
    handles, _ = panels[0].get_legend_handles_labels()
    finish(figure, "Adam's first step of the first layer: a tiny ε is scale-free in float64, and "
           "explodes in float32", handles)  # fmt: skip
    return figure


def _training(training: Results) -> Figure:
    figure = new_figure(6.4)
    panel = figure.subplots()
    depths = [int(depth) for depth in training["by_depth"]]
    for number, eps in enumerate(training["halving_in_theory"]):
        accuracies = [
            [100 * run["test_accuracy"] for run in by_eps[eps]]
            for by_eps in training["by_depth"].values()
        ]
        halving = training["halving_in_theory"][eps]
        style = {"color": GREYS[number], "marker": MARKERS[number], "ls": LINES[number]}
        shifted = [depth + 0.06 * (number - 1.5) for depth in depths]
        panel.plot(shifted, [statistics.median(row) for row in accuracies], lw=3, ms=9, **style,
                   label=f"ε = {eps}: step halves at {halving:.1f} layers")  # fmt: skip
        for x, row in zip(shifted, accuracies, strict=True):
            panel.plot([x, x], [min(row), max(row)], color=GREYS[number], lw=1.5)
    panel.axhline(100 * CHANCE / 2, color="black", lw=1, ls=":")
    panel.set_ylim(0, 100)
    panel.set_xticks(depths)
    label_axes(panel, f"Adam on deep sigmoid nets: test accuracy after {training['steps']} steps",
               "hidden layers", "test accuracy, %")  # fmt: skip
    handles, _ = panel.get_legend_handles_labels()
    finish(figure, f"γ = {training['lr']:g}, width {training['width']}; line: median of the seeds, "
           "bars: lowest to highest; dotted: chance; legend: prediction", handles)  # fmt: skip
    return figure
