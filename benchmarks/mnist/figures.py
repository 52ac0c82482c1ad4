"""The figures of a job, drawn from its runs; readable from the last row of a lecture hall."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.common.nets import TITLES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import LABEL, TITLE, finish, legend_of, png

Run = dict[str, Any]

CHANCE = 0.2  # a test accuracy below this is no better than guessing among ten digits, or hardly
FAR = 10 * math.log(10)  # ten times the loss of guessing: a run with more has diverged
POINTS = 50  # of a curve of the training loss, about
LAST = 5  # samples whose median stands for the end of the training
PANEL_WIDTH, PANEL_HEIGHT = 6.6, 3.9  # inches


def draw_curves(dataset: str, ours: list[Run], theirs: list[Run]) -> bytes:
    """Training loss above test accuracy, a column for each net; torch's as dashes on top."""
    nets = _nets(ours)
    figure = _figure(len(nets), rows=2)
    panels = figure.subplots(2, len(nets), squeeze=False, sharex=True, sharey="row")
    for column, net in enumerate(nets):
        above, below = panels[0][column], panels[1][column]
        for run, line in _lines(net, ours, theirs):
            per_epoch = math.ceil(run["train_size"] / run["batch_size"])
            steps, losses = _smooth(run["curves"]["training"])
            above.plot([step / per_epoch for step in steps], losses, **line)
            test = run["curves"]["test"]
            accuracies = [100 * accuracy for accuracy in test["accuracy"]]
            below.plot([step / per_epoch for step in test["step"]], accuracies, **line)
        mine = [run for run in ours if run["net"] == net]
        _set_title(above, net, describe_outcome(mine))
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        above.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        above.yaxis.set_minor_formatter(NullFormatter())
        below.set_ylim(0, 100)
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_xlabel("epochs", fontsize=LABEL)
    panels[0][0].set_ylabel("training loss", fontsize=LABEL)
    panels[1][0].set_ylabel("test accuracy, %", fontsize=LABEL)
    black = "torch's, on top" if theirs else None
    finish(figure, f"data: {dataset}", _legend(ours, black))
    return png(figure)


def draw_gradient_flow(dataset: str, ours: list[Run]) -> bytes:
    """The norm of the gradient in each layer, at the first step and at the end of the training."""
    nets = _nets(ours)
    figure = _figure(len(nets), rows=1.35)
    panels = figure.subplots(1, len(nets), squeeze=False, sharey=True)[0]
    for panel, net in zip(panels, nets, strict=True):
        mine = [run for run in ours if run["net"] == net]
        start: list[float] = []
        for run in mine:
            norms = run["curves"]["layers"]["gradient_norm"]
            layers = list(norms)
            start = [_numbers(values)[0] for values in norms.values()]
            end = [statistics.median(_numbers(values)[-LAST:]) for values in norms.values()]
            entry = OPTIMIZERS[run["optimizer"]]
            panel.plot(layers, end, color=entry.colour, marker=entry.marker, lw=3, ms=9, alpha=0.9)
        panel.plot(layers, start, color="black", lw=3, ls=(0, (2, 1)), marker="o", ms=8)
        _set_title(panel, net, _how_gradients_flow(start))
        panel.set_yscale("log")
        panel.set_xticks(range(len(layers)), [*map(str, range(1, len(layers))), "output"])
        panel.set_xlabel("layer", fontsize=LABEL)
    panels[0].set_ylabel("norm of the gradient", fontsize=LABEL)
    caption = f"data: {dataset}; black: first step, coloured: end of the training"
    finish(figure, caption, _legend(ours, "first step, all alike", with_markers=True))
    return png(figure)


def _nets(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run["net"] for run in runs))


def _lines(net: str, ours: list[Run], theirs: list[Run]) -> list[tuple[Run, dict[str, Any]]]:
    """The runs of a net with their looks: ours broad and coloured, torch's thin dashes on top."""
    solid = [
        (run, {"color": OPTIMIZERS[run["optimizer"]].colour, "lw": 4})
        for run in ours
        if run["net"] == net
    ]
    dashes = {"color": "black", "lw": 1.1, "ls": (0, (4, 4))}
    return solid + [(run, dashes) for run in theirs if run["net"] == net]


def _numbers(values: list[float | None]) -> list[float]:
    """JSON's null is a number that was not finite: a gap in a curve."""
    return [math.nan if value is None else value for value in values]


def _smooth(curve: dict[str, list[Any]]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points: single batches are too noisy to be compared by eye."""
    steps, losses = curve["step"], _numbers(curve["loss"])
    size = max(1, len(steps) // POINTS)
    starts = range(0, len(steps), size)
    return (
        [steps[min(start + size, len(steps)) - 1] for start in starts],
        [statistics.fmean(losses[start : start + size]) for start in starts],
    )


def describe_outcome(runs: list[Run]) -> str:
    def names(chosen: list[Run]) -> str:
        return ", ".join(OPTIMIZERS[run["optimizer"]].title for run in chosen)

    diverged = [run for run in runs if run["diverged"] or run["train_loss"] > FAR]
    stuck = [run for run in runs if run not in diverged and run["test_accuracy"] < CHANCE]
    if not diverged and not stuck:
        return "every optimizer learns"
    parts = [f"stuck at chance: {names(stuck)}"] if stuck else []
    parts += [f"diverged: {names(diverged)}"] if diverged else []
    return "; ".join(parts)


def _how_gradients_flow(start: list[float]) -> str:
    ratio = start[-1] / start[0] if start[0] else math.inf
    if not math.isfinite(ratio):
        return "no gradient reaches layer 1"
    if ratio < 2:
        return "the gradient reaches layer 1"
    rounded = float(f"{ratio:.2g}")
    return f"layer 1 starts with 1/{rounded:,.0f} of the output's gradient"


def _figure(columns: int, rows: float) -> Figure:
    size = (max(PANEL_WIDTH * columns, 8.5), PANEL_HEIGHT * rows + 1.5)
    return Figure(figsize=size, layout="constrained")


def _set_title(panel: Axes, net: str, story: str) -> None:
    title = TITLES[net]
    panel.set_title(f"{title[0].upper()}{title[1:]}:\n{story}", fontsize=TITLE)


def _legend(runs: list[Run], black: str | None, with_markers: bool = False) -> list[Line2D]:
    lines = legend_of((run["optimizer"] for run in runs), with_markers)
    if black is not None:
        lines.append(Line2D([], [], color="black", lw=1.8, ls=(0, (3, 2)), label=black))
    return lines
