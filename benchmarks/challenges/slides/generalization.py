"""Pictures of generalization: the test loss turns, what cures it, and a curve through points."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.figure import Figure

from benchmarks.challenges.generalization import DECAY_TITLES, mean_gaps
from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import TICK, finish, legend_of


def draw(facts: Facts) -> Pictures:
    return {
        "turning": _turning(facts),
        "cures": _cures(facts),
        "gap": _gap(facts),
        "curve_fit": _fit(facts),
    }


def _turning(facts: Facts) -> Figure:
    figure = slide(6.2)
    panels = figure.subplots(1, 3)
    per_epoch = facts["images"] / facts["batch_size"]
    for name, its in facts["optimizers"].items():
        curve = its["curve"]
        epochs = [step / per_epoch for step in curve["step"]]
        panels[0].plot(epochs, curve["train_loss"], **look(name))
        panels[1].plot(epochs, curve["test_loss"], **look(name))
        panels[2].plot(epochs, [100 * a for a in curve["test_accuracy"]], **look(name))
        at = its["turn"]["at"]
        panels[1].plot(at["step"] / per_epoch, at["test_loss"], "o", mec="black", mew=2, ms=13,
                       color=OPTIMIZERS[name].colour, zorder=5)  # fmt: skip
    panels[0].set_yscale("log")
    ends = [its["turn"]["end"]["test_loss"] for its in facts["optimizers"].values()]
    panels[1].set_ylim(0.3, 1.25 * max(ends))
    panels[2].set_ylim(60, 100)
    turns = [its["turn"] for its in facts["optimizers"].values()]
    rise = [turn["end"]["test_loss"] / turn["at"]["test_loss"] for turn in turns]
    gain = [100 * (turn["end"]["test_accuracy"] - turn["at"]["test_accuracy"]) for turn in turns]
    label(panels[0], "Training loss", "epochs")
    label(panels[1], f"Test loss: × {min(rise):.2f} … {max(rise):.2f}\nafter its lowest", "epochs")
    label(panels[2], f"Test accuracy, %:\n{min(gain):+.1f} … {max(gain):+.1f} meanwhile", "epochs")
    finish(figure, f"{facts['images']:,} images; circle: the lowest test loss",
           legend_of(facts["optimizers"]))  # fmt: skip
    return figure


def _cures(facts: Facts) -> Figure:
    cures = facts["cures"]
    figure = slide(6.6)
    losses, accuracies = figure.subplots(1, 2, sharey=True)
    for place, (name, its) in enumerate(cures.items()):
        bar: dict[str, Any] = {"color": _colour(name), "height": 0.72}
        end = its["end"]
        losses.barh(place, end["test_loss"], **bar)
        accuracies.barh(place, 100 * end["test_accuracy"], **bar)
        # On a patch of white, so that the dotted line does not strike a number out.
        word: dict[str, Any] = {"va": "center", "fontsize": TICK, "zorder": 4}
        word["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        loss, accuracy = end["test_loss"], 100 * end["test_accuracy"]
        losses.text(loss + 0.01, place, f"{loss:.2f}", **word)
        accuracies.text(accuracy + 0.4, place, f"{accuracy:.1f}", **word)
    none = cures["none"]["end"]
    losses.axvline(none["test_loss"], color="black", lw=1.5, ls=":")
    accuracies.axvline(100 * none["test_accuracy"], color="black", lw=1.5, ls=":")
    accuracies.set_xlim(70, 100)
    losses.set_xlim(0, 1.15 * max(its["end"]["test_loss"] for its in cures.values()))
    titles = ["Adam, as it is" if name == "none" else name for name in cures]
    losses.set_yticks(range(len(cures)), titles)
    losses.invert_yaxis()
    label(losses, "Test loss", "")
    label(accuracies, "Test accuracy, %", "")
    finish(
        figure, f"Adam on {facts['images']:,} images, {facts['epochs']} epochs, and what helps", []
    )
    return figure


def _colour(cure: str) -> str:
    """Weight decay in the colour of its optimizer, the others in grey."""
    for name, title in DECAY_TITLES.items():
        if cure.startswith(title):
            return OPTIMIZERS[name].colour
    return OPTIMIZERS["adam"].colour if cure == "none" else "0.55"


def _gap(facts: Facts) -> Figure:
    figure = slide(6.0)
    panel = figure.subplots()
    gaps = mean_gaps(facts)
    for place, (name, values) in enumerate(gaps.items()):
        entry = OPTIMIZERS[name]
        panel.bar(place, statistics.fmean(values), color=entry.colour, width=0.65)
        panel.plot([place] * len(values), values, "o", color="black", ms=9, mfc="none", mew=2)
        accuracy = statistics.fmean(
            at["test_accuracy"] for at in facts["optimizers"][name]["at_equal_loss"] if at
        )
        panel.text(place, 0.02, f"{accuracy:.1%}\ncorrect", ha="center", fontsize=15,
                   color="black", fontweight="bold")  # fmt: skip
    panel.set_xticks(range(len(gaps)), [OPTIMIZERS[name].title for name in gaps])
    means = sorted(map(statistics.fmean, gaps.values())) or [math.nan]
    label(panel, f"Gap at equal training loss {facts['equal_loss']:g}: "
          f"{means[0]:.2f} … {means[-1]:.2f}", y="test loss − training loss")  # fmt: skip
    finish(figure, "circles: seeds; below: test accuracy there", [])
    panel.tick_params(axis="x", labelsize=17)
    return figure


def _fit(facts: Facts) -> Figure:
    fit = facts["fit"]
    figure = slide(6.4)
    *panels, errors = figure.subplots(1, len(fit["curves"]) + 1)
    for panel, (degree, curve) in zip(panels, fit["curves"].items(), strict=True):
        panel.plot(fit["fine"], fit["exact"], color="0.6", lw=3, ls=(0, (3, 2)), label="truth")
        panel.plot(fit["fine"], curve, color="black", lw=3, label="fit")
        panel.plot(fit["x"], fit["y"], "o", color="#D55E00", ms=8, label="data", zorder=5)
        panel.set_ylim(-2.2, 3.6)
        word = {"1": "too stiff", str(fit["best_degree"]): "about right"}.get(degree, "by heart")
        label(panel, f"Degree {degree}: {word}", "x")
    panels[0].legend(fontsize=TICK, frameon=False, loc="upper left")
    errors.plot(fit["degrees"], fit["train_error"], "o-", color="#D55E00", lw=3, ms=7,
                label="on the data")  # fmt: skip
    errors.plot(fit["degrees"], fit["test_error"], "s-", color="black", lw=3, ms=7,
                label="against the truth")  # fmt: skip
    errors.set_yscale("log")
    errors.set_ylim(1e-3, 1e3)
    errors.legend(fontsize=TICK, frameon=False, loc="lower left")
    label(errors, "Mean square error", "degree")
    finish(figure, f"polynomials through {len(fit['x'])} noisy points", [])
    return figure
