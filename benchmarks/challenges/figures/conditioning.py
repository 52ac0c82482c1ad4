"""Figures of an ill-conditioned quadratic: paths, rates of convergence, β, stability."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.conditioning import TUNINGS, quadratic
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
from benchmarks.common.plots import LABEL, TICK

GREYS = ("0.65", "0.4", "0.0")


def draw(results: Results) -> Figures:
    return {
        "paths": _paths(results),
        "rates": _rates(results["rates"]),
        "momentum": _betas(results["betas"]),
        "stability": _limits(results["limits"]),
    }


def _theory(label: str) -> Line2D:
    return Line2D([], [], **THEORY, label=label)


def _paths(results: Results) -> Figure:
    condition = results["path_condition"]
    objective = quadratic(condition)
    figure = new_figure(5.6)
    *planes, distances = figure.subplots(1, 3)
    for panel, (name, run) in zip(planes, results["paths"].items(), strict=True):
        contours(figure, panel, objective, [k**2 for k in range(10)])
        x, y = zip(*run["path"], strict=True)
        panel.plot(x, y, **{**line_style(name, with_marker=True), "lw": 2, "ms": 6})
        mark_start(panel, *objective.start)
        panel.plot(0, 0, "*", color="black", ms=20, zorder=6)
        tuning = run["tuning"]
        beta = f", β = {tuning['beta']:.3f}" if tuning["beta"] else ""
        label_axes(panel, f"{OPTIMIZERS[name].title}: γ = {tuning['lr']:.3f}{beta}", "x", "y")
        distances.plot(run["distance"], **line_style(name))
        last = len(run["distance"]) - 1
        slope = [run["distance"][-1] * tuning["rate"] ** (k - last) for k in range(last + 1)]
        distances.plot(slope, **THEORY)
    distances.set_yscale("log")
    label_axes(distances, "Distance to the minimum", "step")
    finish(figure, f"½(x² + {condition} y²), each at its best learning rate; square: start, star: "
           "minimum", [*legend(results["paths"]), _theory("slopes in theory: (κ−1)/(κ+1) and "
           "(√κ−1)/(√κ+1) a step")])  # fmt: skip
    return figure


def _rates(rates: Results) -> Figure:
    figure = new_figure(6.4)
    panel = figure.subplots()
    conditions = [float(condition) for condition in rates]
    fine = torch.logspace(math.log10(conditions[0]), math.log10(conditions[-1]), 100).tolist()
    for name, tuning in TUNINGS.items():
        measured = [_steps_per_digit(row[name]["measured"]) for row in rates.values()]
        panel.plot(conditions, measured, **{**line_style(name, with_marker=True), "ls": "",
                                            "ms": 13})  # fmt: skip
        panel.plot(fine, [_steps_per_digit(tuning(k).rate) for k in fine], **THEORY)
        panel.text(conditions[-1], measured[-1], f"{measured[-1]:,.0f}   ", ha="right",
                   va="bottom", fontsize=LABEL)  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    label_axes(panel, "Steps for one more digit: ∝ κ for gradient descent, ∝ √κ for momentum",
               "condition number κ", "steps per decimal digit")  # fmt: skip
    finish(figure, "each at the learning rate and β that are best in theory; "
           "SGD is gradient descent here",
           [*legend(TUNINGS, with_markers=True), _theory("theory")])  # fmt: skip
    return figure


def _steps_per_digit(rate: float) -> float:
    return -1 / math.log10(rate)


def _betas(betas: Results) -> Figure:
    figure = new_figure(6.4)
    panel = figure.subplots()
    handles = []
    for (condition, row), shade in zip(betas.items(), GREYS, strict=False):
        distance = [1 - beta for beta in row["beta"]]
        (line,) = panel.plot(distance, nan_for_null(row["steps"]), "o", color=shade, ms=8,
                             label=f"κ = {condition}: best β = {row['best_in_theory']:.3f} in "
                             f"theory, {row['best_measured']:.3f} measured")  # fmt: skip
        handles.append(line)
        theory = [s if s <= row["most"] else math.nan for s in row["steps_in_theory"]]
        panel.plot(distance, theory, **{**THEORY, "lw": 1.6})
        panel.axvline(1 - row["best_in_theory"], color=shade, lw=1.5, ls=":")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.invert_xaxis()
    panel.legend(handles=handles, fontsize=TICK, frameon=False, loc="lower right")
    label_axes(panel, "Steps to 1e-10 of the error, by β",
               "1 − β: gradient descent is on the left", "steps")  # fmt: skip
    finish(figure, "each β at its best learning rate, 2(1 + β)/(L + μ); dashed: theory, "
           "dotted: β = ((√κ − 1)/(√κ + 1))²")  # fmt: skip
    return figure


def _limits(limits: Results) -> Figure:
    figure = new_figure(6.0)
    panel = figure.subplots()
    betas = [float(beta) for beta in limits]
    panel.plot([0, 1], [2, 4], **THEORY)
    panel.fill_between([0, 1], [2, 4], 4.4, color="0.88")
    panel.plot(betas, [row["measured"] for row in limits.values()], "s", ms=13,
               color=OPTIMIZERS["momentum"].colour)  # fmt: skip
    for beta, row in zip(betas, limits.values(), strict=True):
        panel.text(beta + 0.02, row["measured"] - 0.1, f"{row['measured']:.7f}", fontsize=LABEL,
                   va="top")  # fmt: skip
    panel.text(0.3, 3.6, "diverges", fontsize=LABEL)
    panel.text(0.6, 2.4, "converges", fontsize=LABEL)
    panel.set_xlim(-0.02, 1.1)
    panel.set_ylim(1.5, 4.4)
    label_axes(panel, "The largest stable learning rate: momentum allows almost twice as much",
               "β", "γ · L")  # fmt: skip
    finish(figure, "measured by bisection on ½Lθ²; dashed: 2(1 + β)")
    return figure
