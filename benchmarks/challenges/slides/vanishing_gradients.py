"""Pictures of vanishing gradients: by layer, by remedy, and where ε takes over."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.setup import Facts, known
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.challenges.vanishing_gradients import CHANCE
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import TICK, finish, legend_of

GREYS = ("0.75", "0.55", "0.35", "0.0")
MARKERS = ("o", "s", "^", "D")
WIRINGS: dict[str, Any] = {"plain": "-", "batch_norm": (0, (4, 1.5)), "residual": (0, (1, 1))}
WIRING_TITLES = {"plain": "plain", "batch_norm": "batch norm", "residual": "residual"}
INITIALISATIONS = {"default": "0.0", "chosen": "0.6"}
TITLES = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "ReLU"}


def draw(facts: Facts) -> Pictures:
    return {
        "tanh": _tanh(facts),
        "sigmoid_depths": _depths(facts),
        "gradient_norms": _norms(facts),
        "rescues": _rescues(facts),
        "adam_epsilon": _epsilon(facts),
    }


def _tanh(facts: Facts) -> Figure:
    figure = slide(6.0)
    shape, walks = figure.subplots(1, 2, width_ratios=(1, 1.5))
    x = torch.linspace(-4, 5, 300)
    shape.plot(x, torch.tanh(x), color="0.5", lw=3)
    tanh = facts["tanh"]
    shape.plot(tanh["start"], 1, "s", color="black", ms=12)
    shape.annotate(f"start: slope\n{facts['scale']['gradient_at_start']:.5f}", (tanh["start"], 1),
                   (2.9, 0.35), fontsize=15, ha="center")  # fmt: skip
    for name, its in tanh["by_optimizer"].items():
        walks.plot(its["x"], **look(name))
    walks.axhline(0, color="black", lw=1)
    steps = [
        f"{OPTIMIZERS[name].title} {its['steps_to_0']:.0f}" if known(its["steps_to_0"])
        else f"{OPTIMIZERS[name].title} never"
        for name, its in tanh["by_optimizer"].items()
    ]  # fmt: skip
    label(shape, "tanh x is flat at x = 4", "x")
    label(walks, "Steps to x = 0: " + ", ".join(steps[:2]) + ",\n" + ", ".join(steps[2:]),
          "step", "x")  # fmt: skip
    finish(figure, f"learning rate {tanh['lr']:g} for all", legend_of(tanh["by_optimizer"]))
    return figure


def _depths(facts: Facts) -> Figure:
    figure = slide(6.6)
    panel = figure.subplots()
    gradients = facts["gradients"]
    plain = gradients["nets"]["sigmoid"]["default"]["plain"]
    lines = list(zip(plain.items(), GREYS, MARKERS, strict=False))
    for (depth, its), shade, marker in lines:
        norms = its["norms"]
        layers = range(1, len(norms) + 1)
        panel.plot(layers, norms, color=shade, marker=marker, lw=3, ms=8,
                   label=f"{depth} layers: × {its['factor']:.3f} each")  # fmt: skip
        hidden = int(depth)
        theory = [norms[hidden - 1] * gradients["factor_in_theory"] ** (hidden - k)
                  for k in range(1, hidden + 1)]  # fmt: skip
        panel.plot(range(1, hidden + 1), theory, color="#D55E00", lw=1.8, ls=(0, (4, 3)), zorder=4)
    panel.plot([], [], color="#D55E00", lw=1.8, ls=(0, (4, 3)),
               label=f"theory: √(1/3)/4 = {gradients['factor_in_theory']:.3f} each")  # fmt: skip
    panel.set_yscale("log")
    panel.legend(fontsize=15, frameon=False, loc="lower right")
    deepest, its = list(plain.items())[-1]
    label(panel, f"Sigmoid net: of {deepest} layers the first gets "
          f"{its['norms'][1] / its['norms'][-1]:.0e} of the output's gradient",
          "layer, from the input", "norm of the gradient")  # fmt: skip
    finish(figure, f"torch's default initialisation, {gradients['seeds']} seeds", [])
    return figure


def _norms(facts: Facts) -> Figure:
    gradients = facts["gradients"]
    figure = slide(6.6)
    panels = figure.subplots(1, len(gradients["nets"]), sharey=True)
    depth = str(gradients["depths"][-1])
    for panel, (activation, by_init) in zip(panels, gradients["nets"].items(), strict=True):
        for initialisation, by_wiring in by_init.items():
            for wiring, by_depth in by_wiring.items():
                norms = by_depth[depth]["norms"]
                panel.plot(range(1, len(norms) + 1), norms, lw=3.2,
                           color=INITIALISATIONS[initialisation],
                           ls=WIRINGS[wiring])  # fmt: skip
        better = "He" if activation == "relu" else "Xavier"
        factors = [by_init[i]["plain"][depth]["factor"] for i in INITIALISATIONS]
        story = f"plain × {factors[0]:.2f},\n{better} × {factors[1]:.2f} a layer"
        label(panel, f"{TITLES[activation]}: {story}", "layer")  # fmt: skip
        panel.set_yscale("log")
    panels[0].set_ylabel("norm of the gradient", fontsize=15)
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


def _rescues(facts: Facts) -> Figure:
    """A panel for each remedy; colour says which optimizer, the line's style how deep."""
    rescues = facts["rescues"]["by_depth"]
    names = list(next(iter(rescues.values())))
    figure = slide(7.4)
    panels = figure.subplots(2, (len(names) + 1) // 2, sharex=True, sharey=True).flatten()
    styles = dict(zip(rescues, ("-", (0, (2, 1))), strict=True))
    for panel, name in zip(panels, names, strict=False):
        said = []
        for depth, by_name in rescues.items():
            its = by_name[name]
            line = {**look(its["optimizer"]), "ls": styles[depth], "lw": 3}
            panel.plot(its["loss"]["step"], its["loss"]["loss"], **line)
            accuracy = its["test_accuracy"]
            said.append(f"{depth}: {accuracy:.0%}" if accuracy > CHANCE else f"{depth}: chance")
        title = {"nothing": "as it is (SGD)"}.get(name, name)
        panel.set_title(f"{title}\n" + ", ".join(said), fontsize=14.5)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel in panels[-(len(panels) // 2) :]:
        panel.set_xlabel("step", fontsize=15)
    for panel in panels[:: len(panels) // 2]:
        panel.set_ylabel("training loss", fontsize=15)
        panel.set_ylim(0, 2.6)
    used = dict.fromkeys(by_name[name]["optimizer"] for by_name in rescues.values()
                         for name in names)  # fmt: skip
    handles = legend_of(used) + [
        Line2D([], [], color="0.2", lw=3, ls=style, label=f"{depth} layers")
        for depth, style in styles.items()
    ]
    finish(figure, "test accuracy by depth; learning rate: the best of three for each", handles)
    return figure


def _epsilon(facts: Facts) -> Figure:
    figure = slide(6.4)
    left, right = figure.subplots(1, 2)
    scale = facts["scale"]
    gradients = [s * scale["gradient_at_start"] for s in scale["scales"]]
    for name, moved in scale["moved"].items():
        left.plot(gradients, [max(m, 1e-12) for m in moved], **look(name, with_marker=True))
    left.axvline(1e-8, color="black", lw=2, ls=":")
    left.text(5e-8, 20, "ε = 1e-8", fontsize=TICK, ha="right")
    left.set_xscale("log")
    left.set_yscale("log")
    left.invert_xaxis()
    left.set_ylim(1e-10, 100)
    label(left, f"s·tanh x: way made in {scale['steps']} steps", "gradient at the start")
    adam = facts["adam_in_depth"]
    for (depth, its), shade, marker in zip(adam["by_depth"].items(), GREYS, MARKERS, strict=False):
        move = its["move"]
        right.plot(range(1, len(move) + 1), move, color=shade, marker=marker, lw=3, ms=8)
        half_way = next(k for k, one in enumerate(move, start=1) if one > 0.5)
        right.text(half_way + 0.7, 0.5 if half_way > 1 else 0.83, depth, fontsize=17, va="center")
    label(
        right,
        "Adam's first step in sigmoid nets of\n" + ", ".join(adam["by_depth"]) + " layers",
        "layer",
        "move ÷ learning rate",
    )
    finish(
        figure, "below ε a scale-free method is plain gradient descent", legend_of(scale["moved"])
    )
    return figure
