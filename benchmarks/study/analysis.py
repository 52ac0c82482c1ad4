"""From trials to one plain dict: who is best, by how much, how fast, and how hard to tune.

Nothing that went wrong is left out: a run that diverged counts as guessing among ten digits, its
losses are infinite, and a target that a run misses is reached after infinitely many steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from benchmarks.common.nets import ACTIVATIONS, CLASSES, describe
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.statistics import corrected, difference, interval, least_p
from benchmarks.study.trial import FINAL, SEARCH

Trial = dict[str, Any]
Facts = dict[str, Any]

TARGETS = ("0.97", "0.98")
CLOCKS = ("step", "epoch", "seconds")
CHANCE = 1 / CLASSES
LIKELY = 0.05  # a corrected p-value above it: the two cannot be told apart
CLOSE = 0.01  # of accuracy: a learning rate this near to the best one is as good as it
LAST = 5  # samples whose median stands for the end of the training

MEASURES = (
    "test_accuracy", "validation_accuracy", "train_accuracy", "train_loss", "validation_loss",
    "test_loss", "loss_gap", "accuracy_gap",
)  # fmt: skip
DRAWN = ("curves", "gradient_flow")
CURVES = ("train_loss", "validation_loss", "test_loss", "validation_accuracy", "test_accuracy")
SAME = (
    "net", "depth", "width", "schedule", "epochs", "batch_size", "dataset",
    "train_size", "validation_size",
)  # fmt: skip
"""The settings that runs must share to be compared."""


def analyse(trials: Iterable[Trial]) -> Facts:
    """Everything the report says.

    `arenas` holds one entry for each net, track and schedule (and whatever else of `SAME` differs
    between trials), with its `ranking` of re-run winners, best first, and its `sensitivity` to the
    learning rate. An entry is `like_the_best` if it cannot be told from the first, None if there
    are too few seeds to tell anything. Infinite values are `math.inf`; None is what is not known.
    """
    arenas = [_arena(key, group) for key, group in _by_arena(trials).items()]
    behind = [entry for arena in arenas for entry in arena["ranking"][1:]]
    ps = corrected([entry["difference"]["p"] for entry in behind])
    for entry, p in zip(behind, ps, strict=True):
        entry["difference"]["p_corrected"] = p
        entry["like_the_best"] = None if _too_few(entry) else p is not None and p > LIKELY
    return {
        "arenas": arenas,
        "comparisons": sum(p is not None for p in ps),
        "trials": sum(arena["trials"] for arena in arenas),
    }


def _too_few(entry: Facts) -> bool:
    """Whether no difference at all could be told from chance with that many pairs."""
    return least_p(len(entry["difference"]["values"])) > LIKELY


def value(trial: Trial, measure: str) -> float | None:
    """A measure of a trial, with what divergence makes of it; None where it was not measured."""
    if trial["result"]["diverged"]:
        return _worst(measure)
    found = trial["result"].get(measure)
    return None if found is None else float(found)


def reached(trial: Trial, target: str, clock: str) -> float | None:
    """When a trial first reached a target: infinite if never, None if that clock did not run."""
    found = trial["result"]["targets"][target]
    if found["step"] is None:
        return math.inf
    return None if found[clock] is None else float(found[clock])


def _worst(measure: str) -> float:
    if measure == "accuracy_gap":
        return 0.0  # guessing is as good on one data set as on another
    return CHANCE if "accuracy" in measure else math.inf


def _by_arena(trials: Iterable[Trial]) -> dict[tuple[Any, ...], list[Trial]]:
    arenas: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        key = (trial["track"], *(trial["settings"][name] for name in SAME))
        arenas.setdefault(key, []).append(trial)
    nets = [*ACTIVATIONS]
    # "lr" before "all", nets as everywhere, and the order of everything else by its text.
    return dict(
        sorted(arenas.items(), key=lambda item: (
            item[0][0] != "lr", nets.index(item[0][1]), *map(str, item[0]),
        ))
    )  # fmt: skip


def _arena(key: tuple[Any, ...], trials: list[Trial]) -> Facts:
    shared = dict(zip(("track", *SAME), key, strict=True))
    finals = [trial for trial in trials if trial["phase"] == FINAL]
    searched = [trial for trial in trials if trial["phase"] == SEARCH]
    entries = [_entry(runs) for runs in _by_setting(finals)]
    entries.sort(key=_place)
    for entry in entries:
        entry["difference"] = None if entry is entries[0] else _difference(entry, entries[0])
        entry["like_the_best"] = entry is entries[0]
    sensitivities = [
        _sensitivity(name, mine)
        for name in OPTIMIZERS
        if (mine := [one for one in searched if one["settings"]["optimizer"] == name])
    ]
    for one in sensitivities:
        record = max(other["best"]["accuracy"] for other in sensitivities)
        one["close_to_record"] = _close(one["points"], record)
    return shared | {
        "title": describe(shared["net"], shared["depth"], shared["width"]),
        "trials": len(trials),
        "seeds": sorted({trial["settings"]["seed"] for trial in finals}),
        "ranking": entries,
        "sensitivity": sensitivities,
    }


def _place(entry: Facts) -> tuple[float, float]:
    """The highest accuracy comes first, of equal ones the lowest loss; one that overflowed last."""
    loss = entry["train_loss"]["mean"]
    return -entry["test_accuracy"]["mean"], math.inf if loss is None else loss


def _by_setting(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The runs of each optimizer and setting, by seed: two settings of one are two entries."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: int(trial["settings"]["seed"])):
        groups.setdefault(_setting(trial), []).append(trial)
    return [groups[key] for key in sorted(groups)]


def _setting(trial: Trial) -> tuple[Any, ...]:
    settings = trial["settings"]
    options = tuple(sorted((name, str(number)) for name, number in settings["options"].items()))
    return ([*OPTIMIZERS].index(settings["optimizer"]), settings["lr"], options)


def _entry(runs: list[Trial]) -> Facts:
    settings = runs[0]["settings"]
    return {
        "optimizer": settings["optimizer"],
        "title": OPTIMIZERS[settings["optimizer"]].title,
        "lr": settings["lr"],
        "options": settings["options"],
        "seeds": [run["settings"]["seed"] for run in runs],
        "diverged": _share(run["result"]["diverged"] for run in runs),
        "targets": {target: _target(runs, target) for target in TARGETS},
        "curves": curves(runs),
        "gradient_flow": gradient_flow(runs),
    } | {measure: _mean(runs, measure) for measure in MEASURES}


def _mean(runs: list[Trial], measure: str) -> Facts:
    """The values of all runs, their mean and its interval; no mean where a value is not known."""
    values = [value(run, measure) for run in runs]
    known = [one for one in values if one is not None]
    mean = asdict(interval(known)) if known == values else dict.fromkeys(("mean", "low", "high"))
    return mean | {"values": values}


def _target(runs: list[Trial], target: str) -> Facts:
    """How many runs reach it, and by each clock the median over all: infinite if half miss it."""
    found: Facts = {"of": len(runs)}
    for clock in CLOCKS:
        values = [reached(run, target, clock) for run in runs]
        known = [one for one in values if one is not None]
        median = statistics.median(known) if known == values else None
        found[clock] = {"median": median, "values": values}
    found["reached"] = sum(math.isfinite(step) for step in found["step"]["values"])
    return found


def _difference(entry: Facts, best: Facts) -> Facts:
    """Of test accuracy, over the seeds that both have."""
    ours, theirs = (
        dict(zip(one["seeds"], one["test_accuracy"]["values"], strict=True))
        for one in (entry, best)
    )
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return dict.fromkeys(("mean", "low", "high", "p")) | {"values": []}
    found = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return asdict(found) | {"values": [ours[seed] - theirs[seed] for seed in seeds]}


def _sensitivity(optimizer: str, trials: list[Trial]) -> Facts:
    """How much the learning rate (in the track "all", the whole setting) matters in the search."""
    points = [
        {
            "lr": runs[0]["settings"]["lr"],
            "options": runs[0]["settings"]["options"],
            "accuracy": statistics.fmean(_accuracies(runs)),
            "loss": statistics.fmean(_losses(runs)),
            "diverged": _share(run["result"]["diverged"] for run in runs),
        }
        for runs in _by_setting(trials)
    ]
    # As the protocol chooses: the highest accuracy, of equal ones the lowest loss.
    best = max(points, key=lambda point: (point["accuracy"], -point["loss"]))
    rates = [point["lr"] for point in points]
    return {
        "optimizer": optimizer,
        "title": OPTIMIZERS[optimizer].title,
        "points": points,
        "best": best,
        "at_edge": best["lr"] in (min(rates), max(rates)),
        "close": _close(points, best["accuracy"]),
        "diverged": statistics.fmean(point["diverged"] for point in points),
    }


def _close(points: list[Facts], best: float) -> float:
    # Accuracies are shares of whole images, but floats: a hair must not decide.
    return _share(point["accuracy"] >= best - CLOSE - 1e-9 for point in points)


def _losses(runs: list[Trial]) -> list[float]:
    losses = [value(run, "validation_loss") for run in runs]
    return [math.inf if one is None else one for one in losses]


def _accuracies(runs: list[Trial]) -> list[float]:
    return [one for run in runs if (one := value(run, "validation_accuracy")) is not None]


def curves(runs: list[Trial]) -> Facts:
    """The median, the lowest and the highest of all runs at each step that one of them recorded.

    A run that diverged goes on with the worst there is: its end must not better the others'.
    """
    steps = sorted({step for run in runs for step in run["result"]["curves"]["step"]})
    epochs = {
        step: epoch
        for run in runs
        for step, epoch in zip(*_columns(run, "step", "epoch"), strict=True)
    }
    found: Facts = {"step": steps, "epoch": [epochs[step] for step in steps]}
    for name in CURVES:
        at: dict[int, list[float]] = {step: [] for step in steps}
        for run in runs:
            mine = dict(zip(*_columns(run, "step", name), strict=True))
            for step in steps:
                if (one := mine.get(step)) is not None:
                    at[step].append(one)
                elif run["result"]["diverged"] and step >= run["result"]["diverged_at_step"]:
                    at[step].append(_worst(name))
        found[name] = {
            word: [pick(values) if values else None for values in at.values()]
            for word, pick in (("median", statistics.median), ("low", min), ("high", max))
        }
    return found


def gradient_flow(runs: list[Trial]) -> Facts:
    """The norm of each layer's gradient when first looked at and at the end: medians over runs."""
    norms = [run["result"]["gradient_norms"] for run in runs]
    layers = [name for name in norms[0] if name != "step"]

    def over_runs(pick: Callable[[list[float]], float]) -> list[float | None]:
        found = []
        for layer in layers:
            known = [[one for one in run[layer] if one is not None] for run in norms]
            picked = [pick(values) for values in known if values]
            found.append(statistics.median(picked) if picked else None)
        return found

    return {
        "layers": layers,
        "first_step": min((run["step"][0] for run in norms if run.get("step")), default=None),
        "start": over_runs(lambda values: values[0]),
        "end": over_runs(lambda values: statistics.median(values[-LAST:])),
    }


def _columns(run: Trial, *names: str) -> list[list[Any]]:
    return [run["result"]["curves"][name] for name in names]


def _share(facts: Iterable[bool]) -> float:
    return statistics.fmean(map(float, facts))


def without_curves(facts: Facts) -> Facts:
    """What is worth keeping for long: all but what is there to be drawn."""
    return facts | {
        "arenas": [
            arena
            | {
                "ranking": [
                    {name: one for name, one in entry.items() if name not in DRAWN}
                    for entry in arena["ranking"]
                ]
            }
            for arena in facts["arenas"]
        ]
    }
