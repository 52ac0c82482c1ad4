"""A page for each function: the paths of all optimizers, and how low they got."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.challenges.slides.saddle_points import contours
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import finish


def draw(facts: Facts) -> Pictures:
    return {key: _page(key, facts) for key in facts["landscapes"]}


def _page(key: str, facts: Facts) -> Figure:
    landscape, by_name = LANDSCAPES[key], facts["landscapes"][key]
    figure = slide(6.8)
    map_, heights = figure.subplots(1, 2)
    if len(landscape.domain) == 2:
        contours(map_, landscape, _levels(key))
    else:
        ((low, high),) = landscape.domain
        x = torch.linspace(low, high, 400, dtype=torch.float64)
        map_.plot(x, landscape.at(x[:, None]), color="0.6", lw=2.5)
    for name, its in by_name.items():
        path = torch.tensor(its["path"], dtype=torch.float64)
        xs, ys = path[:, 0], path[:, 1] if path.shape[1] == 2 else torch.tensor(its["height"])
        map_.plot(xs, ys, **{**look(name, with_marker=True), "lw": 2, "ms": 5})
        map_.plot(xs[-1], ys[-1], "o", ms=14, mfc="none", mec=OPTIMIZERS[name].colour, mew=3)
        heights.plot(its["height"], **look(name))
    for minimum in landscape.minima:
        y = minimum[1] if len(minimum) == 2 else landscape.at(torch.tensor(minimum))
        map_.plot(minimum[0], y, "*", color="black", ms=20, zorder=6)
    lowest = min(min(its["height"]) for its in by_name.values())
    if landscape.minima and abs(landscape.at(torch.tensor(landscape.minima[0]))) < 1e-9:
        heights.set_yscale("log")
        heights.set_ylim(bottom=max(1e-10, lowest / 3))
    label(map_, f"${landscape.formula}$" if len(landscape.formula) < 60 else landscape.title)
    label(heights, "Height", "step")
    handles = [
        Line2D([], [], color=OPTIMIZERS[name].colour, lw=4,
               label=f"{OPTIMIZERS[name].title} γ = {its['lr']:.2g}")
        for name, its in by_name.items()
    ]  # fmt: skip
    finish(figure, f"{landscape.title}: each at the best of {len(facts['rates'])} learning rates, "
           f"{facts['steps']} steps", handles)  # fmt: skip
    return figure


def _levels(key: str) -> int | list[float]:
    """Heights that grow by factors show a valley; equal ones a saddle or an egg box."""
    if key not in ("rosenbrock", "beale"):
        return 25
    return [float(level) for level in torch.logspace(-1, 4.5, 23)]
