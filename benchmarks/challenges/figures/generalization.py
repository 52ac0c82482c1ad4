"""Figures of generalization: the test loss rises again, remedies, and a polynomial fit."""

from __future__ import annotations

import math
import statistics

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.experiment import Results
from benchmarks.challenges.figures import (
    Figures,
    finish,
    label_axes,
    legend,
    line_style,
    new_figure,
)
from benchmarks.challenges.generalization import DECAY_TITLES, NO_REMEDY, mean_gaps
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.common.plots import LABEL, TICK, TITLE


def draw(results: Results) -> Figures:
    return {
        "turning": _turning(results),
        "remedies": _remedies(results),
        "gap": _gap(results),
        "curve_fit": _fit(results),
    }


def _turning(results: Results) -> Figure:
    figure = new_figure(6.2)
    training, test, accuracy = figure.subplots(1, 3)
    per_epoch = results["images"] / results["batch_size"]
    for name, runs in results["optimizers"].items():
        curve, lowest = runs["curve"], runs["turn"]["lowest"]
        epochs = [step / per_epoch for step in curve["step"]]
        training.plot(epochs, curve["train_loss"], **line_style(name))
        test.plot(epochs, curve["test_loss"], **line_style(name))
        accuracy.plot(epochs, [100 * a for a in curve["test_accuracy"]], **line_style(name))
        test.plot(lowest["step"] / per_epoch, lowest["test_loss"], "o", mec="black", mew=2, ms=13,
                  color=OPTIMIZERS[name].colour, zorder=5)  # fmt: skip
    training.set_yscale("log")
    turns = [runs["turn"] for runs in results["optimizers"].values()]
    test.set_ylim(0.3, 1.25 * max(turn["end"]["test_loss"] for turn in turns))
    accuracy.set_ylim(60, 100)
    rise = [turn["end"]["test_loss"] / turn["lowest"]["test_loss"] for turn in turns]
    gain = [
        100 * (turn["end"]["test_accuracy"] - turn["lowest"]["test_accuracy"]) for turn in turns
    ]
    label_axes(training, "Training loss", "epochs")
    label_axes(test, f"Test loss: × {min(rise):.2f} … {max(rise):.2f}\nafter its lowest", "epochs")
    label_axes(accuracy, f"Test accuracy, %:\n{min(gain):+.1f} … {max(gain):+.1f} meanwhile",
               "epochs")  # fmt: skip
    finish(figure, f"{results['images']:,} images; circle: the lowest test loss",
           legend(results["optimizers"]))  # fmt: skip
    return figure


def _remedies(results: Results) -> Figure:
    """A dot for each seed; the dotted line is the mean without a remedy."""
    remedies = results["remedies"]
    figure = new_figure(6.8)
    losses, accuracies = figure.subplots(1, 2, sharey=True)
    for panel, key, scale, digits in (
        (losses, "test_loss", 1, 2),
        (accuracies, "test_accuracy", 100, 1),
    ):
        baseline = scale * statistics.fmean(end[key] for end in remedies[NO_REMEDY])
        panel.axvline(baseline, color="black", lw=1.5, ls=":")
        means = []
        for row, (name, ends) in enumerate(remedies.items()):
            values = [scale * end[key] for end in ends]
            means.append(statistics.fmean(values))
            panel.plot(values, [row] * len(values), "o", ms=9, color=_colour(name), alpha=0.75)
            panel.plot([means[-1]] * 2, [row - 0.3, row + 0.3], color=_colour(name), lw=3)
        right = panel.secondary_yaxis("right")
        right.set_yticks(range(len(means)), [f"{mean:.{digits}f}" for mean in means])
        right.tick_params(labelsize=TICK, length=0)
        right.spines[:].set_visible(False)
    losses.set_yticks(
        range(len(remedies)), ["Adam alone" if name == NO_REMEDY else name for name in remedies]
    )
    losses.invert_yaxis()
    label_axes(losses, "Test loss: better to the left", "")
    label_axes(accuracies, "Test accuracy, %: better to the right", "")
    seeds = len(remedies[NO_REMEDY])
    dot, bar, line = (
        Line2D([], [], color="0.4", marker="o", ls="", ms=9, label="a seed"),
        Line2D([], [], color="0.4", marker="|", ls="", ms=14, mew=3, label="mean (right margin)"),
        Line2D([], [], color="black", lw=1.5, ls=":", label="Adam alone, mean"),
    )
    finish(figure, f"Adam on {results['images']:,} images, {results['epochs']} epochs, "
           f"{seeds} seeds: weight decay, more data, early stopping", [dot, bar, line])  # fmt: skip
    return figure


def _colour(remedy: str) -> str:
    """Weight decay in the colour of its optimizer, the others in grey."""
    for name, title in DECAY_TITLES.items():
        if remedy.startswith(title):
            return OPTIMIZERS[name].colour
    return "0.0" if remedy == NO_REMEDY else "0.5"


def _gap(results: Results) -> Figure:
    figure = new_figure(6.0)
    panel = figure.subplots()
    gaps = mean_gaps(results)
    for x, (name, values) in enumerate(gaps.items()):
        panel.bar(x, statistics.fmean(values), color=OPTIMIZERS[name].colour, width=0.65)
        panel.plot([x] * len(values), values, "o", color="black", ms=9, mfc="none", mew=2)
        accuracy = statistics.fmean(
            at["test_accuracy"] for at in results["optimizers"][name]["at_equal_loss"] if at
        )
        panel.text(x, 0.02, f"{accuracy:.1%}\ncorrect", ha="center", fontsize=LABEL,
                   color="black", fontweight="bold")  # fmt: skip
    panel.set_xticks(range(len(gaps)), [OPTIMIZERS[name].title for name in gaps])
    means = sorted(map(statistics.fmean, gaps.values())) or [math.nan]
    label_axes(panel, f"Gap at equal training loss {results['equal_loss']:g}: "
               f"{means[0]:.2f} … {means[-1]:.2f}", y="test loss − training loss")  # fmt: skip
    finish(figure, "circles: seeds; text: test accuracy at that training loss")
    panel.tick_params(axis="x", labelsize=TITLE)
    return figure


def _fit(results: Results) -> Figure:
    fit = results["fit"]
    figure = new_figure(6.4)
    *panels, errors = figure.subplots(1, len(fit["curves"]) + 1)
    for panel, (degree, curve) in zip(panels, fit["curves"].items(), strict=True):
        panel.plot(fit["fine"], fit["exact"], color="0.6", lw=3, ls=(0, (3, 2)), label="truth")
        panel.plot(fit["fine"], curve, color="black", lw=3, label="fit")
        panel.plot(fit["x"], fit["y"], "o", color="#D55E00", ms=8, label="data", zorder=5)
        panel.set_ylim(-2.2, 3.6)
        verdict = {"1": "underfits", str(fit["best_degree"]): "fits best"}.get(degree, "overfits")
        label_axes(panel, f"Degree {degree}: {verdict}", "x")
    panels[0].legend(fontsize=TICK, frameon=False, loc="upper left")
    errors.plot(fit["degrees"], fit["train_error"], "o-", color="#D55E00", lw=3, ms=7,
                label="on the data")  # fmt: skip
    errors.plot(fit["degrees"], fit["test_error"], "s-", color="black", lw=3, ms=7,
                label="against the truth")  # fmt: skip
    errors.set_yscale("log")
    errors.set_ylim(1e-3, 1e3)
    errors.legend(fontsize=TICK, frameon=False, loc="lower left")
    label_axes(errors, "Mean square error", "degree")
    finish(figure, f"polynomials through {len(fit['x'])} noisy points")
    return figure
