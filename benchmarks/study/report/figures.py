"""The figures of a comparison, each drawn from the facts of `analysis`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.study.analysis import CLOSE, TARGETS
from benchmarks.study.report.drawing import (
    GREY,
    INK,
    legend,
    panel,
    percent_of_errors,
    plain_log,
    style,
    tag,
)
from benchmarks.study.report.words import number, percent, setting_of, with_interval

Facts = dict[str, Any]
Draw = Callable[[Facts], Figure]

FAR = 3.0  # points behind the best: beyond that and the second, a row has a number only
LEAST = 5e-5  # an error on a logarithmic axis
NEVER = 1.12  # where a profile ends that does not reach the top, in units of the longest run


def ranking(comparison: Facts) -> Figure:
    """Test errors: the mean of each optimizer with its interval over the runs of single seeds."""
    entries = comparison["ranking"]
    figure, axes = panel(
        "Test error of the chosen settings", "test error, %", "", rows=len(entries)
    )
    runs = [[*map(_error, entry["test_accuracy"]["values"])] for entry in entries]
    percent_of_errors(axes, "x", [error for errors in runs for error in errors])
    for row, (entry, errors) in enumerate(zip(entries, runs, strict=True)):
        accuracy = entry["test_accuracy"]
        ends = [_error(end) for end in (accuracy["high"], accuracy["low"]) if end is not None]
        words = f"{entry['title']}, {setting_of(entry)}: test accuracy {with_interval(accuracy)}"
        _interval(axes, entry["optimizer"], row, _error(accuracy["mean"]), ends, errors, words)
    _name_rows(axes, entries)
    return figure


def behind_the_best(comparison: Facts) -> Figure:
    """Paired differences in test accuracy; those far behind are numbers at the edge."""
    entries = comparison["ranking"]
    best = entries[0]
    title = f"Points behind {best['title']}, seed by seed"
    figure, axes = panel(title, "difference in test accuracy, points", "", rows=len(entries))
    axes.axvline(0, color=style(best["optimizer"])["color"], lw=2)
    gaps = [-100 * (entry["difference"]["mean"] or 0) for entry in entries[1:]]
    far = max(FAR, 1.3 * min(gaps))
    for row, entry in enumerate(entries[1:], 1):
        behind = entry["difference"]
        if behind["mean"] is None:
            continue
        mean, words = 100 * behind["mean"], f"{entry['title']}: {with_interval(behind)} points"
        if mean < -far:
            colour = style(entry["optimizer"])["color"]
            text = axes.text(
                0.02, row, f"◀ {number(mean, '.1f')}", color=colour, va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            tag(text, entry["optimizer"], words)
            continue
        ends = [100 * end for end in (behind["low"], behind["high"]) if end is not None]
        runs = [100 * difference for difference in behind["values"]]
        _interval(axes, entry["optimizer"], row, mean, ends, runs, words)
    low, high = axes.get_xlim()
    axes.set_xlim(min(-0.1, max(low, -far)), max(0.1, min(high, far)))
    _name_rows(axes, entries)
    return figure


def _interval(
    axes: Axes,
    optimizer: str,
    row: int,
    mean: float,
    ends: list[float],
    runs: list[float],
    words: str,
) -> None:
    """A mean on the bar of its interval, and below it the single runs."""
    colour = style(optimizer)
    artists = [
        *axes.plot(runs, [row + 0.25] * len(runs), ls="", ms=4, alpha=0.55, mew=0, **colour),
        *axes.plot(ends, [row] * len(ends), lw=4, alpha=0.6, color=colour["color"]),
        *axes.plot(mean, row, ms=7, **colour),
    ]
    tag(artists, optimizer, words)


def _name_rows(axes: Axes, entries: Sequence[Facts]) -> None:
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.6)


def _error(accuracy: float) -> float:
    """For a logarithmic axis, no error at all is drawn as half an image of 10,000."""
    return max(1 - accuracy, LEAST)


def _widths(entries: Sequence[Facts]) -> list[float]:
    """Each line is a little thinner than those below it, so that all are seen where they agree."""
    return [2 + 0.6 * (len(entries) - 1 - row) for row in range(len(entries))]


def sensitivity(comparison: Facts) -> Figure:
    """Validation error over learning rates, of the search."""
    title = (
        "Learning-rate sensitivity"
        if comparison["search_space"] == "lr"
        else "Every setting searched"
    )
    figure, axes = panel(title, "learning rate", "validation error, %")
    points = [point for tuned in comparison["sensitivity"] for point in tuned["points"]]
    errors = [_error(point["accuracy"]) for point in points]
    axes.set_xscale("log")
    percent_of_errors(axes, "y", errors)
    for tuned, width in zip(
        comparison["sensitivity"], _widths(comparison["sensitivity"]), strict=True
    ):
        tried = tuned["points"]
        rates = [point["lr"] for point in tried]
        heights = [_error(point["accuracy"]) for point in tried]
        line = "-" if comparison["search_space"] == "lr" else ""
        artists = axes.plot(rates, heights, ls=line, lw=width, ms=5, **style(tuned["optimizer"]))
        diverged = [point for point in tried if point["diverged"]]
        artists += axes.plot(
            [point["lr"] for point in diverged],
            [_error(point["accuracy"]) for point in diverged],
            ls="", marker="x", ms=9, mew=2, color=style(tuned["optimizer"])["color"],
        )  # fmt: skip
        best = tuned["best"]
        artists += axes.plot(
            best["lr"], _error(best["accuracy"]), ls="", marker="o", ms=13, mfc="none", mew=2,
            color=style(tuned["optimizer"])["color"],
        )  # fmt: skip
        words = f"{tuned['title']}: {percent(best['accuracy'])} at learning rate {best['lr']:g}"
        tag(artists, tuned["optimizer"], words)
    record = max(point["accuracy"] for point in points)
    axes.axhspan(_error(record), _error(record - CLOSE), color=GREY, alpha=0.18, lw=0)
    marks: dict[str, dict[str, Any]] = {"chosen": {"marker": "o", "ms": 10, "mfc": "none"}}
    if any(point["diverged"] for point in points):
        marks["diverged"] = {"marker": "x", "ms": 8}
    legend(axes, _optimizers(comparison["sensitivity"]), [
        Line2D([], [], ls="", mew=2, color=INK, label=label, **mark)
        for label, mark in marks.items()
    ])  # fmt: skip
    return figure


def training_loss(comparison: Facts) -> Figure:
    figure, axes = panel("Training loss", "epochs", "training loss")
    _curves(comparison, "train_loss", axes, lambda loss: loss)
    plain_log(axes)
    return figure


def validation_error(comparison: Facts) -> Figure:
    figure, axes = panel("Validation error", "epochs", "validation error, %")
    percent_of_errors(axes, "y", _curves(comparison, "validation_accuracy", axes, _error))
    return figure


def _curves(
    comparison: Facts, name: str, axes: Axes, height: Callable[[float], float]
) -> list[float]:
    """Medians as lines, all runs as bands. Returns every height in them."""
    entries = comparison["ranking"]
    drawn = [
        {
            label: [math.nan if y is None else height(y) for y in entry["curves"][name][label]]
            for label in ("median", "low", "high")
        }
        for entry in entries
    ]
    heights = [y for lines in drawn for line in lines.values() for y in line]
    heights = [y for y in heights if math.isfinite(y)]
    for entry, lines, width in zip(entries, drawn, _widths(entries), strict=True):
        epochs = entry["curves"]["epoch"]
        # An infinite loss leaves the figure by its upper edge.
        low, high = ([min(y, max(heights)) for y in lines[end]] for end in ("low", "high"))
        colour = style(entry["optimizer"])
        curve = axes.plot(epochs, lines["median"], lw=width, ms=5, markevery=0.2, **colour)
        band = axes.fill_between(epochs, low, high, alpha=0.2, lw=0, color=colour["color"])
        tag([*curve, band], entry["optimizer"], f"{entry['title']}, {setting_of(entry)}")
    axes.set_xlim(left=0)
    legend(axes, _optimizers(entries))
    return heights


def time_to(target: str) -> Draw:
    """A profile: the share of runs that have reached the target, over epochs."""

    def draw(comparison: Facts) -> Figure:
        title = f"Runs that have reached {percent(float(target), 0)} validation accuracy"
        figure, axes = panel(title, "epochs", "share of runs, %")
        longest = max(entry["curves"]["epoch"][-1] for entry in comparison["ranking"])
        for row, entry in enumerate(comparison["ranking"]):
            times = entry["targets"][target]
            hits = sorted(epoch for epoch in times["epoch"]["values"] if math.isfinite(epoch))
            shares = [100 * number / times["of"] for number in range(len(hits) + 1)]
            # Equal profiles are drawn a little apart.
            shift = 0.7 * (row - (len(comparison["ranking"]) - 1) / 2)
            x = [0.0, *hits, longest * NEVER]
            y = [share + shift for share in (*shares, shares[-1])]
            lines = axes.step(x, y, where="post", lw=2, **style(entry["optimizer"]), ms=6,
                              markevery=[len(x) - 1])  # fmt: skip
            words = f"{entry['title']}: {times['reached']} of {times['of']} runs"
            tag(lines, entry["optimizer"], words)
        axes.axvline(longest, color=GREY, lw=1, ls=(0, (2, 2)))
        axes.set_xlim(0, longest * NEVER * 1.02)
        axes.set_ylim(-4, 104)
        legend(axes, _optimizers(comparison["ranking"]))
        return figure

    return draw


def gradient_flow(comparison: Facts) -> Figure:
    """The norm of the gradient in each layer, early in the training and at its end."""
    figure, axes = panel("Gradient of each layer's weights", "layer", "norm of the gradient")
    best = comparison["ranking"][0]["gradient_flow"]
    start = [math.nan if norm is None else norm for norm in best["start"]]
    for entry, width in zip(comparison["ranking"], _widths(comparison["ranking"]), strict=True):
        flow = entry["gradient_flow"]
        layers = range(len(flow["layers"]))
        end = [math.nan if norm is None else norm for norm in flow["end"]]
        lines = axes.plot(layers, end, lw=width, ms=6, **style(entry["optimizer"]))
        tag(lines, entry["optimizer"], f"{entry['title']}, at the end of the training")
    dashes: dict[str, Any] = {"color": INK, "lw": 2, "ls": (0, (3, 2)), "marker": ".", "ms": 8}
    axes.plot(range(len(start)), start, **dashes)
    names = best["layers"]
    axes.set_xticks(range(len(names)), [name.removeprefix("layer_") for name in names])
    plain_log(axes)
    early = Line2D([], [], label=f"step {best['first_step']}", **dashes)
    legend(axes, _optimizers(comparison["ranking"]), [early])
    return figure


def _optimizers(entries: Sequence[Facts]) -> list[str]:
    return [entry["optimizer"] for entry in entries]


DRAWINGS: dict[str, Draw] = {
    "ranking": ranking,
    "behind_the_best": behind_the_best,
    "sensitivity": sensitivity,
    "training_loss": training_loss,
    "validation_error": validation_error,
    **{f"time_to_{target.removeprefix('0.')}": time_to(target) for target in TARGETS},
    "gradient_flow": gradient_flow,
}
