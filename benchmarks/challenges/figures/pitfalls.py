"""Figures of pitfalls, one for each."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    DASHED,
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


def draw(results: Results) -> Figures:
    return {
        "epsilon_in_root": _epsilon(results["eps"], results["eps_deep_net"]),
        "bias_correction": _bias_correction(results["bias_correction"]),
        "momentum_formulas": _momentum(results["momentum_formulas"]),
        "loss_divided_twice": _division(results["divided_twice"]),
        "clipping": _clipping(results["clipping"]),
    }


def _epsilon(eps: Results, deep_net: Results) -> Figure:
    figure = new_figure(6.2)
    constant, training = figure.subplots(1, 2)
    for placement, style in (("outside", "-"), ("inside", DASHED)):
        for name, distance in eps["distance"].items():
            line = {**line_style(name), "ls": style}
            constant.plot(eps["gradients"], distance[placement], **line)
            curve = deep_net["loss"][name][placement]
            training.plot(curve["step"], curve["loss"], **line)
    constant.set_xscale("log")
    constant.set_yscale("log")
    constant.invert_xaxis()
    label_axes(constant, f"Distance in {eps['steps']} steps of a constant gradient",
               "constant gradient", "distance ÷ learning rate")  # fmt: skip
    label_axes(training, "Deep sigmoid net", "step", "training loss")
    training.set_ylim(0, 2.7)
    styles = [
        Line2D([], [], color="black", lw=3, label="√v + ε (torch)"),
        Line2D([], [], color="black", lw=3, ls=DASHED, label="√(v + ε)"),
    ]
    finish(figure, f"ε = {eps['eps']:g}: outside the root, or inside",
           [*legend(eps["distance"]), *styles])  # fmt: skip
    return figure


def _bias_correction(results: Results) -> Figure:
    figure = new_figure(6.4)
    sizes, steps = figure.subplots(1, 2)
    for name, by_step in results["step_size"].items():
        sizes.plot(range(1, len(by_step) + 1), by_step, **line_style(name))
        steps.plot(results["rates"], nan_for_null(results["escape_steps"][name]),
                   **line_style(name))  # fmt: skip
    sizes.set_ylim(0, 10.5)
    label_axes(sizes, "Step size under a constant gradient", "step", "step ÷ learning rate")
    steps.set_xscale("log")
    steps.set_yscale("log")
    label_axes(steps, f"Steps to leave $x^2 - y^2$ from y₀ = {results['start'][1]:g}",
               "learning rate γ")  # fmt: skip
    finish(figure, "the same method with and without bias correction: RMSProp has none, Adam has",
           legend(results["step_size"]))  # fmt: skip
    return figure


def _momentum(results: Results) -> Figure:
    figure = new_figure(6.0)
    panel = figure.subplots()
    styles: tuple[Any, ...] = ("-", (0, (1, 1)), DASHED)
    for (formula, values), style, shade in zip(
        results["value"].items(), styles, ("0.0", "0.35", "0.6"), strict=True
    ):
        panel.plot(values, color=shade, lw=3.5, ls=style, label=formula)
    falls_at = results["falls_at"]
    panel.axvline(falls_at, ymax=0.45, color="0.4", lw=1.5)
    panel.text(falls_at + 1, 6.6, "γ falls to γ/10", fontsize=LABEL)
    panel.set_ylim(4.8, 9)
    panel.legend(fontsize=LABEL, frameon=False, loc="upper right")
    label_axes(panel, "Three formulas that are all called momentum", "step",
               "value (Rosenbrock)")  # fmt: skip
    finish(figure, f"γ = {results['lr']:g}, μ = 0.9: black and dashed are equal until γ changes")
    return figure


def _division(results: Results) -> Figure:
    figure = new_figure(6.0)
    panels = figure.subplots(1, 2, sharey=True)
    texts = (("correct", "Mean loss of a batch"), ("divided", "Divided by the batch size again"))
    for panel, (kind, title) in zip(panels, texts, strict=True):
        for name, by_kind in results["loss"].items():
            panel.plot(by_kind[kind]["step"], by_kind[kind]["loss"], **line_style(name))
        label_axes(panel, title, "step")
    panels[0].set_ylabel("training loss", fontsize=LABEL)
    panels[0].set_ylim(0, 2.5)
    finish(figure, "a bug that adaptive methods hide: their steps do not depend on the scale",
           legend(results["loss"]))  # fmt: skip
    return figure


def _clipping(results: Results) -> Figure:
    """Dots, because a logarithmic axis has no zero for bars to start at."""
    figure = new_figure(6.0)
    panels = figure.subplots(1, 2, sharex=True)
    texts = (("free", "No clipping"), ("clipped", f"Clipped at norm {results['clipped_at']:g}"))
    for panel, (kind, title) in zip(panels, texts, strict=True):
        ranking = results[f"{kind}_ranking"]
        for rank, name in enumerate(ranking):
            best, entry = results[kind][name], OPTIMIZERS[name]
            panel.plot([best["low"], best["high"]], [rank] * 2, color=entry.colour, lw=8,
                       marker=entry.marker, ms=13, solid_capstyle="round")  # fmt: skip
        rates = [f"{OPTIMIZERS[n].title}\nγ = {results[kind][n]['lr']:.2g}" for n in ranking]
        panel.set_xscale("log")
        panel.set_yticks(range(len(ranking)), rates)
        panel.invert_yaxis()
        label_axes(panel, title, f"value after {results['steps']} steps")
    finish(figure, f"Rosenbrock, each at the best of {len(results['rates'])} learning rates, best "
           "first.\nA bar: starts that differ by 1e-12 end anywhere on it (chaos).")  # fmt: skip
    for panel in panels:
        panel.tick_params(axis="y", labelsize=TICK)
    return figure
