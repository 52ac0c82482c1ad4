"""The figures of an arena (a net in a track), each drawn from the facts of `analysis`."""

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
    belongs,
    legend,
    look,
    panel,
    percent_of_errors,
    plain_log,
)
from benchmarks.study.report.words import number, percent, setting_of, with_interval

Facts = dict[str, Any]
Draw = Callable[[Facts], Figure]

FAR = 3.0  # points behind the best: who is farther away than that and the next is only named
LEAST = 5e-5  # an error on a logarithmic axis
NEVER = 1.12  # where a profile ends that does not reach the top, in units of the longest run


def ranking(arena: Facts) -> Figure:
    """Test errors: the mean of each optimizer with its interval over the runs of single seeds."""
    entries = arena["ranking"]
    figure, axes = panel("Test error of the re-run winners", "test error, %", "", rows=len(entries))
    runs = [[_error(one) for one in entry["test_accuracy"]["values"]] for entry in entries]
    percent_of_errors(axes, "x", [one for mine in runs for one in mine])
    for place, (entry, mine) in enumerate(zip(entries, runs, strict=True)):
        accuracy = entry["test_accuracy"]
        ends = [_error(one) for one in (accuracy["high"], accuracy["low"]) if one is not None]
        words = f"{entry['title']}, {setting_of(entry)}: test accuracy {with_interval(accuracy)}"
        _interval(axes, entry["optimizer"], place, _error(accuracy["mean"]), ends, mine, words)
    _name_rows(axes, entries)
    return figure


def behind_the_best(arena: Facts) -> Figure:
    """Paired differences in test accuracy; who is far behind is named at the edge."""
    entries = arena["ranking"]
    best = entries[0]
    title = f"Points behind {best['title']}, seed by seed"
    figure, axes = panel(title, "difference in test accuracy, points", "", rows=len(entries))
    axes.axvline(0, color=look(best["optimizer"])["color"], lw=2)
    gaps = [-100 * (entry["difference"]["mean"] or 0) for entry in entries[1:]]
    far = max(FAR, 1.3 * min(gaps))
    for place, entry in enumerate(entries[1:], 1):
        found = entry["difference"]
        if found["mean"] is None:
            continue
        mean, words = 100 * found["mean"], f"{entry['title']}: {with_interval(found)} points"
        if mean < -far:
            colour = look(entry["optimizer"])["color"]
            text = axes.text(
                0.02, place, f"◀ {number(mean, '.1f')}", color=colour, va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            belongs(text, entry["optimizer"], words)
            continue
        ends = [100 * one for one in (found["low"], found["high"]) if one is not None]
        runs = [100 * one for one in found["values"]]
        _interval(axes, entry["optimizer"], place, mean, ends, runs, words)
    low, high = axes.get_xlim()
    axes.set_xlim(min(-0.1, max(low, -far)), max(0.1, min(high, far)))
    _name_rows(axes, entries)
    return figure


def _interval(
    axes: Axes,
    optimizer: str,
    place: int,
    mean: float,
    ends: list[float],
    runs: list[float],
    words: str,
) -> None:
    """A mean on the bar of its interval, above the runs that it is of."""
    colour = look(optimizer)
    artists = [
        *axes.plot(runs, [place + 0.25] * len(runs), ls="", ms=4, alpha=0.55, mew=0, **colour),
        *axes.plot(ends, [place] * len(ends), lw=4, alpha=0.6, color=colour["color"]),
        *axes.plot(mean, place, ms=7, **colour),
    ]
    belongs(artists, optimizer, words)


def _name_rows(axes: Axes, entries: Sequence[Facts]) -> None:
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.6)


def _error(accuracy: float) -> float:
    """For a logarithmic axis: no error at all is drawn as less than one of 10,000 images."""
    return max(1 - accuracy, LEAST)


def _widths(entries: Sequence[Facts]) -> list[float]:
    """Each line a little thinner than the one below, which is seen even where they agree."""
    return [2 + 0.6 * (len(entries) - 1 - place) for place in range(len(entries))]


def sensitivity(arena: Facts) -> Figure:
    """Validation error over learning rates: how wide the valley is matters as much as how deep."""
    title = "Learning-rate sensitivity" if arena["track"] == "lr" else "Every setting searched"
    figure, axes = panel(title, "learning rate", "validation error, %")
    points = [point for one in arena["sensitivity"] for point in one["points"]]
    errors = [_error(point["accuracy"]) for point in points]
    axes.set_xscale("log")
    percent_of_errors(axes, "y", errors)
    for one, width in zip(arena["sensitivity"], _widths(arena["sensitivity"]), strict=True):
        mine = one["points"]
        rates = [point["lr"] for point in mine]
        heights = [_error(point["accuracy"]) for point in mine]
        line = "-" if arena["track"] == "lr" else ""
        artists = axes.plot(rates, heights, ls=line, lw=width, ms=5, **look(one["optimizer"]))
        lost = [point for point in mine if point["diverged"]]
        artists += axes.plot(
            [point["lr"] for point in lost], [_error(point["accuracy"]) for point in lost],
            ls="", marker="x", ms=9, mew=2, color=look(one["optimizer"])["color"],
        )  # fmt: skip
        best = one["best"]
        artists += axes.plot(
            best["lr"], _error(best["accuracy"]), ls="", marker="o", ms=13, mfc="none", mew=2,
            color=look(one["optimizer"])["color"],
        )  # fmt: skip
        words = f"{one['title']}: best {percent(best['accuracy'])} at learning rate {best['lr']:g}"
        belongs(artists, one["optimizer"], words)
    record = max(one["best"]["accuracy"] for one in arena["sensitivity"])
    axes.axhspan(_error(record), _error(record - CLOSE), color=GREY, alpha=0.18, lw=0)
    legend(axes, _optimizers(arena["sensitivity"]), [
        Line2D([], [], ls="", marker="o", ms=10, mfc="none", mew=2, color=INK, label="its best"),
        Line2D([], [], ls="", marker="x", ms=8, mew=2, color=INK, label="diverged"),
    ])  # fmt: skip
    return figure


def training_loss(arena: Facts) -> Figure:
    figure, axes = panel("Training loss", "epochs", "training loss")
    _curves(arena, "train_loss", axes, lambda loss: loss)
    plain_log(axes)
    return figure


def validation_error(arena: Facts) -> Figure:
    figure, axes = panel("Validation error", "epochs", "validation error, %")
    percent_of_errors(axes, "y", _curves(arena, "validation_accuracy", axes, _error))
    return figure


def _curves(arena: Facts, name: str, axes: Axes, height: Callable[[float], float]) -> list[float]:
    """Medians as lines, all runs as bands. Returns every height in them."""
    entries = arena["ranking"]
    drawn = [
        {
            word: [math.nan if one is None else height(one) for one in entry["curves"][name][word]]
            for word in ("median", "low", "high")
        }
        for entry in entries
    ]
    heights = [one for lines in drawn for line in lines.values() for one in line]
    heights = [one for one in heights if math.isfinite(one)]
    for entry, lines, width in zip(entries, drawn, _widths(entries), strict=True):
        epochs = entry["curves"]["epoch"]
        # An infinite loss leaves the figure by its upper edge.
        low, high = ([min(one, max(heights)) for one in lines[end]] for end in ("low", "high"))
        colour = look(entry["optimizer"])
        curve = axes.plot(epochs, lines["median"], lw=width, ms=5, markevery=0.2, **colour)
        band = axes.fill_between(epochs, low, high, alpha=0.2, lw=0, color=colour["color"])
        belongs([*curve, band], entry["optimizer"], f"{entry['title']}, {setting_of(entry)}")
    axes.set_xlim(left=0)
    legend(axes, _optimizers(entries))
    return heights


def time_to(target: str) -> Draw:
    """A profile: which share of the runs has reached the target after how many epochs."""

    def draw(arena: Facts) -> Figure:
        title = f"Runs that have reached {percent(float(target), 0)} validation accuracy"
        figure, axes = panel(title, "epochs", "share of runs, %")
        longest = max(entry["curves"]["epoch"][-1] for entry in arena["ranking"])
        for place, entry in enumerate(arena["ranking"]):
            found = entry["targets"][target]
            hits = sorted(one for one in found["epoch"]["values"] if math.isfinite(one))
            shares = [100 * number / found["of"] for number in range(len(hits) + 1)]
            # Profiles that lie on each other stay apart by a hair.
            shift = 0.7 * (place - (len(arena["ranking"]) - 1) / 2)
            x = [0.0, *hits, longest * NEVER]
            y = [share + shift for share in (*shares, shares[-1])]
            lines = axes.step(x, y, where="post", lw=2, **look(entry["optimizer"]), ms=6,
                              markevery=[len(x) - 1])  # fmt: skip
            words = f"{entry['title']}: {found['reached']} of {found['of']} runs"
            belongs(lines, entry["optimizer"], words)
        axes.axvline(longest, color=GREY, lw=1, ls=(0, (2, 2)))
        axes.set_xlim(0, longest * NEVER * 1.02)
        axes.set_ylim(-4, 104)
        legend(axes, _optimizers(arena["ranking"]))
        return figure

    return draw


def gradient_flow(arena: Facts) -> Figure:
    """The norm of the gradient in each layer, early in the training and at its end."""
    figure, axes = panel("Gradient of each layer's weights", "layer", "norm of the gradient")
    best = arena["ranking"][0]["gradient_flow"]
    start = [math.nan if one is None else one for one in best["start"]]
    for entry, width in zip(arena["ranking"], _widths(arena["ranking"]), strict=True):
        flow = entry["gradient_flow"]
        places = range(len(flow["layers"]))
        end = [math.nan if one is None else one for one in flow["end"]]
        lines = axes.plot(places, end, lw=width, ms=6, **look(entry["optimizer"]))
        belongs(lines, entry["optimizer"], f"{entry['title']}, at the end of the training")
    dashes: dict[str, Any] = {"color": INK, "lw": 2, "ls": (0, (3, 2)), "marker": ".", "ms": 8}
    axes.plot(range(len(start)), start, **dashes)
    names = best["layers"]
    axes.set_xticks(range(len(names)), [name.removeprefix("layer_") for name in names])
    plain_log(axes)
    early = Line2D([], [], label=f"step {best['first_step']}", **dashes)
    legend(axes, _optimizers(arena["ranking"]), [early])
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
