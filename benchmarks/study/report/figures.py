"""The figures of an arena (a net in a track), each drawn from the facts of `analysis`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.study.analysis import TARGETS
from benchmarks.study.report.drawing import (
    GREY,
    INK,
    SMALL,
    belongs,
    legend,
    look,
    panel,
    percent_of_errors,
    plain_log,
)
from benchmarks.study.report.words import percent, setting_of, with_interval

Facts = dict[str, Any]
Draw = Callable[[Facts], Figure]

NEVER = 1.12  # where a profile ends that does not reach the top, in units of the longest run


def ranking(arena: Facts) -> Figure:
    """Test errors: the mean of each optimizer with its interval over the runs of single seeds."""
    entries = arena["ranking"]
    figure, axes = panel("Test error of the re-run winners", "test error, %", "")
    errors = [1 - one for entry in entries for one in entry["test_accuracy"]["values"]]
    percent_of_errors(axes, "x", errors)
    for place, entry in enumerate(entries):
        accuracy, colour = entry["test_accuracy"], look(entry["optimizer"])
        mine = [1 - one for one in accuracy["values"]]
        dots = axes.plot(mine, [place + 0.22] * len(mine), ls="", ms=4, alpha=0.55, mew=0, **colour)
        artists = [*dots, *axes.plot(1 - accuracy["mean"], place, ms=9, **colour)]
        if accuracy["low"] is not None:
            artists += axes.plot(
                [1 - accuracy["high"], 1 - accuracy["low"]],
                [place, place],
                lw=3,
                color=colour["color"],
            )
        words = f"{entry['title']}, {setting_of(entry)}: test accuracy {with_interval(accuracy)}"
        belongs(artists, entry["optimizer"], words)
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.6)
    return figure


def sensitivity(arena: Facts) -> Figure:
    """Validation error over learning rates: how wide the valley is matters as much as how deep."""
    title = "Learning-rate sensitivity" if arena["track"] == "lr" else "Every setting searched"
    figure, axes = panel(title, "learning rate", "validation error, %")
    points = [point for one in arena["sensitivity"] for point in one["points"]]
    errors = [1 - point["accuracy"] for point in points]
    axes.set_xscale("log")
    percent_of_errors(axes, "y", errors)
    for one in arena["sensitivity"]:
        mine = one["points"]
        rates = [point["lr"] for point in mine]
        heights = [1 - point["accuracy"] for point in mine]
        line = "-" if arena["track"] == "lr" else ""
        artists = axes.plot(
            rates, heights, ls=line, lw=2, ms=5, alpha=0.85, **look(one["optimizer"])
        )
        lost = [point for point in mine if point["diverged"]]
        artists += axes.plot(
            [point["lr"] for point in lost], [1 - point["accuracy"] for point in lost],
            ls="", marker="x", ms=9, mew=2, color=look(one["optimizer"])["color"],
        )  # fmt: skip
        best = one["best"]
        artists += axes.plot(best["lr"], 1 - best["accuracy"], ls="", marker="o", ms=13, mfc="none",
                             mew=2, color=look(one["optimizer"])["color"])  # fmt: skip
        words = f"{one['title']}: best {percent(best['accuracy'])} at learning rate {best['lr']:g}"
        belongs(artists, one["optimizer"], words)
    record = max(one["best"]["accuracy"] for one in arena["sensitivity"])
    axes.axhspan(1 - record, 1 - record + 0.01, color=GREY, alpha=0.18, lw=0)
    legend(figure, _optimizers(arena["sensitivity"]), [
        Line2D([], [], ls="", marker="o", ms=10, mfc="none", mew=2, color=INK, label="its best"),
        Line2D([], [], ls="", marker="x", ms=8, mew=2, color=INK, label="diverged"),
    ])  # fmt: skip
    return figure


def training_loss(arena: Facts) -> Figure:
    figure, axes = panel("Training loss", "epochs", "training loss")
    _curves(arena, "train_loss", axes.plot, axes.fill_between, lambda loss: loss)
    plain_log(axes)
    axes.set_xlim(left=0)
    legend(figure, _optimizers(arena["ranking"]))
    return figure


def validation_error(arena: Facts) -> Figure:
    figure, axes = panel("Validation error", "epochs", "validation error, %")
    errors = _curves(
        arena, "validation_accuracy", axes.plot, axes.fill_between, lambda accuracy: 1 - accuracy
    )
    percent_of_errors(axes, "y", errors)
    axes.set_xlim(left=0)
    legend(figure, _optimizers(arena["ranking"]))
    return figure


def _curves(
    arena: Facts,
    name: str,
    plot: Callable[..., list[Line2D]],
    fill: Callable[..., Any],
    height: Callable[[float], float],
) -> list[float]:
    """Medians as lines, all runs as bands. Returns every height in them."""
    seen = []
    for entry in arena["ranking"]:
        epochs, curve = entry["curves"]["epoch"], entry["curves"][name]
        median, low, high = (
            [math.nan if one is None or math.isinf(one) else height(one) for one in curve[word]]
            for word in ("median", "low", "high")
        )
        colour = look(entry["optimizer"], marker=False)
        lines = plot(epochs, median, lw=2, **look(entry["optimizer"]), ms=5, markevery=0.2)
        band = fill(epochs, low, high, alpha=0.2, lw=0, **colour)
        belongs([*lines, band], entry["optimizer"], f"{entry['title']}, {setting_of(entry)}")
        seen += [one for one in (*median, *low, *high) if math.isfinite(one)]
    return seen


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
        axes.annotate("end", (longest, 50), fontsize=SMALL, color=GREY, ha="right", rotation=90)
        axes.set_xlim(0, longest * NEVER * 1.02)
        axes.set_ylim(-4, 104)
        legend(figure, _optimizers(arena["ranking"]))
        return figure

    return draw


def gradient_flow(arena: Facts) -> Figure:
    """The norm of the gradient in each layer, at the first step and at the end of the training."""
    figure, axes = panel("Gradient of each layer's weights", "layer", "norm of the gradient")
    start: list[float] = []
    for entry in arena["ranking"]:
        flow = entry["gradient_flow"]
        places = range(len(flow["layers"]))
        start = start or [math.nan if one is None else one for one in flow["start"]]
        end = [math.nan if one is None else one for one in flow["end"]]
        lines = axes.plot(places, end, lw=2, ms=6, alpha=0.9, **look(entry["optimizer"]))
        belongs(lines, entry["optimizer"], f"{entry['title']}, at the end of the training")
    axes.plot(range(len(start)), start, color=INK, lw=2, ls=(0, (3, 2)), marker=".", ms=8)
    names = arena["ranking"][0]["gradient_flow"]["layers"]
    axes.set_xticks(range(len(names)), [name.removeprefix("layer_") for name in names])
    axes.set_yscale("log")
    legend(figure, _optimizers(arena["ranking"]), [
        Line2D([], [], color=INK, lw=2, ls=(0, (3, 2)), marker=".", ms=8, label="first step"),
    ])  # fmt: skip
    return figure


def _optimizers(entries: Sequence[Facts]) -> list[str]:
    return [entry["optimizer"] for entry in entries]


OF_RANKING: dict[str, Draw] = {
    "ranking": ranking,
    "training_loss": training_loss,
    "validation_error": validation_error,
    **{f"time_to_{target.removeprefix('0.')}": time_to(target) for target in TARGETS},
    "gradient_flow": gradient_flow,
}
OF_SEARCH: dict[str, Draw] = {"sensitivity": sensitivity}


def draw_all(arena: Facts) -> dict[str, Figure]:
    """Every figure that there are facts for, the most instructive first."""
    chosen = (OF_SEARCH if arena["sensitivity"] else {}) | (OF_RANKING if arena["ranking"] else {})
    return {name: draw(arena) for name, draw in chosen.items()}
