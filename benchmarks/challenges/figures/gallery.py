"""A figure for each test function: the paths of all optimizers, and their values."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    Figures,
    contours,
    finish,
    label_axes,
    line_style,
    new_figure,
)
from benchmarks.challenges.gallery import is_chaotic
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.common.test_functions import TEST_FUNCTIONS, Objective


def draw(results: Results) -> Figures:
    return {
        key: _paths(TEST_FUNCTIONS[key], by_name, results)
        for key, by_name in results["functions"].items()
    }


def _paths(objective: Objective, by_name: Results, results: Results) -> Figure:
    figure = new_figure(6.8)
    plane, values = figure.subplots(1, 2)
    if len(objective.domain) == 2:
        if objective.title in ("Rosenbrock", "Beale"):  # levels that grow by factors show a valley
            contours(figure, plane, objective, torch.logspace(-1, 5, 25).tolist(), LogNorm())
        else:
            contours(figure, plane, objective)
    else:
        ((low, high),) = objective.domain
        x = torch.linspace(low, high, 400, dtype=torch.float64)
        plane.plot(x, objective.value(x[:, None]), color="0.6", lw=2.5)
    for name, best in by_name.items():
        if best is None:
            continue
        path = torch.tensor(best["path"], dtype=torch.float64)
        xs, ys = path[:, 0], path[:, 1] if path.shape[1] == 2 else torch.tensor(best["value"])
        plane.plot(xs, ys, **{**line_style(name, with_marker=True), "lw": 2, "ms": 5})
        plane.plot(xs[-1], ys[-1], "o", ms=14, mfc="none", mec=OPTIMIZERS[name].colour, mew=3)
        values.plot(best["value"], **line_style(name))
    _mark(plane, objective, objective.start, "s", 11)
    for minimum in objective.minima:
        _mark(plane, objective, minimum, "*", 20)
    lowest = min((min(best["value"]) for best in by_name.values() if best), default=1.0)
    if objective.minima and abs(objective.value(torch.tensor(objective.minima[0]))) < 1e-9:
        values.set_yscale("log")
        values.set_ylim(bottom=max(1e-10, lowest / 3))
    label_axes(plane, f"${objective.formula}$" if len(objective.formula) < 60 else "Paths")
    label_axes(values, "Value", "step")
    handles = [
        Line2D([], [], **line_style(name, True), label=_legend_entry(name, best))
        for name, best in by_name.items()
    ]
    aim = (
        f"lowest end after {results['steps']} steps" if objective.target is None
        else f"fewest steps to a value below {objective.target:g}"
    )  # fmt: skip
    finish(figure, f"{objective.title}: each at the best of {len(results['rates'])} learning rates "
           f"({aim}); square: start, circle: end", handles)  # fmt: skip
    return figure


def _mark(
    panel: Axes, objective: Objective, point: tuple[float, ...], marker: str, size: int
) -> None:
    y = point[1] if len(point) == 2 else objective.value(torch.tensor(point)).item()
    panel.plot(point[0], y, marker, color="black", ms=size, zorder=6)


def _legend_entry(name: str, best: Results | None) -> str:
    if best is None:
        return f"{OPTIMIZERS[name].title}: no rate"
    entry = f"{OPTIMIZERS[name].title} γ = {best['lr']:.2g}"
    if best["steps_to_target"] is not None:
        steps = best["steps_to_target"]
        return f"{entry}: {steps} step{'s' * (steps != 1)}"
    if is_chaotic(best):
        return f"{entry}\nchaotic: {best['lowest_end']:.1g} … {best['highest_end']:.1g}"
    return entry
