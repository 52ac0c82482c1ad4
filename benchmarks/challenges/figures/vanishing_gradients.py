"""Figures of vanishing gradients: by layer, by remedy, and where ε takes over."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.experiment import Results, is_finite
from benchmarks.challenges.figures import (
    THEORY,
    Figures,
    finish,
    label_axes,
    legend,
    line_style,
    new_figure,
)
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.challenges.vanishing_gradients import CHANCE
from benchmarks.common.plots import LABEL, TICK

GREYS = ("0.75", "0.55", "0.35", "0.0")
MARKERS = ("o", "s", "^", "D")
WIRINGS: dict[str, Any] = {"plain": "-", "batch_norm": (0, (4, 1.5)), "residual": (0, (1, 1))}
WIRING_TITLES = {"plain": "plain", "batch_norm": "batch norm", "residual": "residual"}
INITIALISATIONS = {"default": "0.0", "chosen": "0.6"}
TITLES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU"}
LINES: tuple[Any, ...] = ("-", (0, (2, 1)))


def draw(results: Results) -> Figures:
    return {
        "tanh": _tanh(results["tanh"]),
        "sigmoid_depths": _depths(results["gradients"]),
        "gradient_norms": _norms(results["gradients"]),
        "remedies": _remedies(results["remedies"]),
        "adam_epsilon": _epsilon(results),
    }


def _tanh(tanh: Results) -> Figure:
    figure = new_figure(6.2)
    shape, paths = figure.subplots(1, 2, width_ratios=(1, 1.5))
    x = torch.linspace(-4, 5, 300)
    shape.plot(x, torch.tanh(x), color="0.5", lw=3)
    shape.plot(tanh["start"], 1, "s", color="black", ms=12)
    shape.annotate(f"start: slope\n{tanh['gradient_at_start']:.5f}", (tanh["start"], 1),
                   (2.9, 0.35), fontsize=LABEL, ha="center")  # fmt: skip
    handles = legend(tanh["by_optimizer"])
    for handle, (name, path) in zip(handles, tanh["by_optimizer"].items(), strict=True):
        paths.plot(path["x"], **line_style(name))
        steps = f"{path['steps_to_0']:.0f}" if is_finite(path["steps_to_0"]) else "never"
        handle.set_label(f"{OPTIMIZERS[name].title}: {steps}")
    paths.axhline(0, color="black", lw=1)
    label_axes(shape, "tanh x is flat at x = 4", "x")
    label_axes(paths, "Minimizing tanh x from x = 4", "step", "x")
    finish(figure, f"learning rate {tanh['lr']:g} for all; legend: steps to x = 0. "
           "RMSProp's first step is 10 γ, because it lacks Adam's bias correction.",
           handles)  # fmt: skip
    return figure


def _depths(gradients: Results) -> Figure:
    figure = new_figure(6.6)
    panel = figure.subplots()
    plain = gradients["nets"]["sigmoid"]["default"]["plain"]
    for (depth, row), shade, marker in zip(plain.items(), GREYS, MARKERS, strict=False):
        norms, hidden = row["norms"], int(depth)
        panel.plot(range(1, len(norms) + 1), norms, color=shade, marker=marker, lw=3, ms=8,
                   label=f"{depth} layers: × {row['factor']:.3f} each")  # fmt: skip
        layers = range(1, hidden + 1)
        theory = [norms[hidden - 1] * gradients["factor_in_theory"] ** (hidden - k) for k in layers]
        panel.plot(layers, theory, color="#D55E00", lw=1.8, ls=(0, (4, 3)), zorder=4)
    panel.plot([], [], color="#D55E00", lw=1.8, ls=(0, (4, 3)),
               label=f"theory: √(1/3)/4 = {gradients['factor_in_theory']:.3f} each")  # fmt: skip
    panel.set_yscale("log")
    panel.legend(fontsize=LABEL, frameon=False, loc="lower right")
    deepest, row = list(plain.items())[-1]
    label_axes(panel, f"Sigmoid net of {deepest} layers: the first one gets "
               f"{row['norms'][1] / row['norms'][-1]:.0e} of the output's gradient",
               "layer, from the input", "norm of the gradient")  # fmt: skip
    finish(figure, f"torch's default initialisation, {gradients['seeds']} seeds")
    return figure


def _norms(gradients: Results) -> Figure:
    figure = new_figure(6.6)
    panels = figure.subplots(1, len(gradients["nets"]), sharey=True)
    depth = str(gradients["depths"][-1])
    for panel, (activation, by_init) in zip(panels, gradients["nets"].items(), strict=True):
        for initialisation, by_wiring in by_init.items():
            for wiring, by_depth in by_wiring.items():
                norms = by_depth[depth]["norms"]
                panel.plot(range(1, len(norms) + 1), norms, lw=3.2,
                           color=INITIALISATIONS[initialisation], ls=WIRINGS[wiring])  # fmt: skip
        better = "He" if activation == "relu" else "Xavier"
        default, chosen = (by_init[i]["plain"][depth]["factor"] for i in INITIALISATIONS)
        label_axes(panel, f"{TITLES[activation]}: plain × {default:.2f},\n"
                   f"{better} × {chosen:.2f} a layer", "layer")  # fmt: skip
        panel.set_yscale("log")
    panels[0].set_ylabel("norm of the gradient", fontsize=LABEL)
    handles = [
        Line2D([], [], color=INITIALISATIONS[i], lw=4, label=text)
        for i, text in (("default", "torch's default"), ("chosen", "Xavier or He"))
    ]
    handles += [
        Line2D([], [], color="0.3", lw=3.2, ls=style, label=WIRING_TITLES[wiring])
        for wiring, style in WIRINGS.items()
    ]
    finish(figure, f"{depth} hidden layers, before training, {gradients['seeds']} seeds", handles)
    return figure


def _remedies(remedies: Results) -> Figure:
    """A panel for each remedy; colour says which optimizer, the line's style how deep."""
    by_depth = remedies["by_depth"]
    names = list(next(iter(by_depth.values())))
    figure = new_figure(7.6)
    panels = figure.subplots(2, (len(names) + 1) // 2, sharex=True, sharey=True).flatten()
    styles = dict(zip(by_depth, LINES, strict=True))
    for panel, name in zip(panels, names, strict=False):
        lines = ["SGD, no remedy" if name == "none" else name]
        for depth, by_remedy in by_depth.items():
            best = by_remedy[name]
            style = {**line_style(best["optimizer"]), "ls": styles[depth], "lw": 3}
            panel.plot(best["loss"]["step"], best["loss"]["loss"], **style)
            lines.append(f"{depth} layers: {_accuracies(best)}")
        panel.set_title("\n".join(lines), fontsize=TICK)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel in panels[-(len(panels) // 2) :]:
        panel.set_xlabel("step", fontsize=LABEL)
    for panel in panels[:: len(panels) // 2]:
        panel.set_ylabel("training loss", fontsize=LABEL)
        panel.set_ylim(0, 2.6)
    used = [best["optimizer"] for by_remedy in by_depth.values() for best in by_remedy.values()]
    handles = legend(used) + [
        Line2D([], [], color="0.2", lw=3, ls=style, label=f"{depth} layers")
        for depth, style in styles.items()
    ]
    seeds = len(best["accuracies"])
    finish(figure, f"test accuracy, lowest … highest of {seeds} seeds, at the best of five "
           "learning rates for each", handles)  # fmt: skip
    return figure


def _accuracies(best: Results) -> str:
    low, high = min(best["accuracies"]), max(best["accuracies"])
    if high < CHANCE:
        return "chance"
    edge = ", edge of the grid" if best["at_edge"] else ""
    return f"{low:.0%} … {high:.0%}{edge}"


def _epsilon(results: Results) -> Figure:
    figure = new_figure(6.4)
    constant, layers = figure.subplots(1, 2)
    epsilon = results["epsilon"]
    for name, distance in epsilon["distance"].items():
        constant.plot(epsilon["gradients"], distance, **line_style(name, with_marker=True))
    by_eps: dict[float, list[str]] = {}
    for name, eps in epsilon["eps"].items():
        if eps is not None:
            by_eps.setdefault(eps, []).append(OPTIMIZERS[name].title)
    for eps, titles in by_eps.items():
        constant.axvline(eps, **{**THEORY, "lw": 1.8, "ls": ":"})
        text = f" ε = {eps:g}: {', '.join(titles)}"
        constant.text(eps, 2e3 if eps > 1e-9 else 3e2, text, fontsize=TICK, ha="left")
    constant.set_xscale("log")
    constant.set_yscale("log")
    constant.invert_xaxis()
    constant.set_ylim(1e-8, 1e4)
    label_axes(constant, f"Distance in {epsilon['steps']} steps", "constant gradient",
               "distance ÷ learning rate")  # fmt: skip
    by_depth = results["adam_by_depth"]["by_depth"]
    for (depth, steps), shade, marker in zip(by_depth.items(), GREYS, MARKERS, strict=False):
        layers.plot(range(1, len(steps) + 1), steps, color=shade, marker=marker, lw=3, ms=8)
        half_way = next(k for k, step in enumerate(steps, start=1) if step > 0.5)
        layers.text(half_way + 0.7, 0.5 if half_way > 1 else 0.83, depth, fontsize=17, va="center")
    label_axes(layers, "Adam's first step in sigmoid nets of\n" + ", ".join(by_depth) + " layers",
               "layer", "step ÷ learning rate")  # fmt: skip
    finish(figure, "below its ε an adaptive method is plain gradient descent",
           legend(epsilon["distance"], with_markers=True))  # fmt: skip
    return figure
