"""From trials to one plain dict: which optimizer is best, by how much, how fast, how hard to tune.

Failures count. A run that diverged counts as guessing among ten digits, and its losses as infinite.
A target that a run misses is reached after infinitely many steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from benchmarks.common.nets import ACTIVATIONS, describe
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.statistics import (
    LEVEL,
    detectable,
    difference,
    holm,
    interval,
    sampling_error,
)
from benchmarks.study.trial import CHANCE, FINAL, PHASES, SEARCH, SELECTION, TIMING, has_failed

Trial = dict[str, Any]
Facts = dict[str, Any]

TARGETS = ("0.97", "0.98")
CLOCKS = ("step", "epoch", "seconds")
CLOSE = 0.01  # of accuracy: a learning rate this near to the best one is as good as it
LAST = 5  # samples whose median stands for the end of the training

MEASURES = (
    "test_accuracy", "validation_accuracy", "train_accuracy", "train_loss", "validation_loss",
    "test_loss", "loss_gap", "accuracy_gap",
)  # fmt: skip
ONLY_DRAWN = ("curves", "gradient_flow")
CURVES = ("train_loss", "validation_loss", "test_loss", "validation_accuracy", "test_accuracy")
SAME = (
    "net", "depth", "width", "schedule", "epochs", "batch_size", "dataset",
    "train_size", "validation_size", "test_size",
)  # fmt: skip
"""The settings that runs must share to be compared."""


def analyse(trials: Iterable[Trial]) -> Facts:
    """Everything the report says.

    `comparisons` holds one entry for each net, search space and schedule (and whatever else of
    `SAME` differs between trials), with

    * `ranking`: the chosen settings, best mean first, each with its `difference` to the first and,
      in the search space "all", its `gain` over the same optimizer's setting in "lr". p-values are
      corrected for all that are in the same list.
    * `selection`: the candidates on the selection seeds.
    * `sensitivity`: the search.
    * `stacked`: how many trials were trained in a stack and have no seconds of their own.

    Infinite values are `math.inf`; None is what is not known.
    """
    groups = _by_comparison(trials)
    comparisons = {key: _comparison(key, group) for key, group in groups.items()}
    for (search_space, *same), comparison in comparisons.items():
        of_lr = comparisons.get(("lr", *same))
        if search_space == "all" and of_lr is not None:
            _add_gains(comparison, of_lr)
    return {
        "comparisons": list(comparisons.values()),
        "trials": sum(comparison["trials"] for comparison in comparisons.values()),
    }


def value(trial: Trial, measure: str) -> float | None:
    """A measure of a trial, with the worst value for a diverged one; None if it is unknown."""
    if trial["result"]["diverged"]:
        return _worst(measure)
    measured = trial["result"].get(measure)
    return None if measured is None else float(measured)


def reached(trial: Trial, target: str, clock: str) -> float | None:
    """When a trial first reached a target: infinite if never, None if that clock did not run."""
    first = trial["result"]["targets"][target]
    if first["step"] is None:
        return math.inf
    return None if first[clock] is None else float(first[clock])


def _worst(measure: str) -> float:
    if measure == "accuracy_gap":
        return 0.0  # guessing is as good on one data set as on another
    return CHANCE if "accuracy" in measure else math.inf


def _by_comparison(trials: Iterable[Trial]) -> dict[tuple[Any, ...], list[Trial]]:
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        key = (trial["search_space"], *(trial["settings"][name] for name in SAME))
        groups.setdefault(key, []).append(trial)
    nets = [*ACTIVATIONS]
    # "lr" before "all", nets as everywhere, and everything else in the order of its text.
    return dict(
        sorted(groups.items(), key=lambda item: (
            item[0][0] != "lr", nets.index(item[0][1]), *map(str, item[0]),
        ))
    )  # fmt: skip


def _comparison(key: tuple[Any, ...], trials: list[Trial]) -> Facts:
    shared = dict(zip(("search_space", *SAME), key, strict=True))
    of_phase = {phase: [trial for trial in trials if trial["phase"] == phase] for phase in PHASES}
    ranking = [_entry(runs, of_phase[TIMING]) for runs in _by_setting(of_phase[FINAL])]
    ranking.sort(key=_rank)
    for entry in ranking:
        entry["difference"] = None if entry is ranking[0] else _difference(entry, ranking[0])
    _correct([entry["difference"] for entry in ranking[1:]])
    sensitivity = [
        _sensitivity(name, searched, ranking, at_edge=shared["search_space"] == "lr")
        for name in OPTIMIZERS
        if (searched := [x for x in of_phase[SEARCH] if x["settings"]["optimizer"] == name])
    ]
    for tuned in sensitivity:
        record = max(point["accuracy"] for other in sensitivity for point in other["points"])
        tuned["close_to_record"] = _close(tuned["points"], record)
    best = ranking[0]["test_accuracy"]["mean"] if ranking else None
    return shared | {
        "title": describe(shared["net"], shared["depth"], shared["width"]),
        "trials": len(trials),
        "stacked": sum(trial["result"]["seconds"] is None for trial in trials),
        "search_seeds": _seeds(of_phase[SEARCH]),
        "selection_seeds": _seeds(of_phase[SELECTION]),
        "seeds": _seeds(of_phase[FINAL]),
        "sampling_error": None if best is None else sampling_error(best, shared["test_size"]),
        "ranking": ranking,
        "selection": _selection(of_phase[SELECTION], of_phase[SEARCH], ranking),
        "sensitivity": sensitivity,
    }


def _seeds(trials: Iterable[Trial]) -> list[int]:
    return sorted({trial["settings"]["seed"] for trial in trials})


def _rank(entry: Facts) -> tuple[float, float]:
    """The highest accuracy comes first, of equal ones the lowest loss; one that overflowed last."""
    loss = entry["train_loss"]["mean"]
    return -entry["test_accuracy"]["mean"], math.inf if loss is None else loss


def _by_setting(trials: Iterable[Trial]) -> list[list[Trial]]:
    """The runs of each optimizer and setting, by seed: two settings of one are two entries."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: int(trial["settings"]["seed"])):
        groups.setdefault(_setting(trial["settings"]), []).append(trial)
    return [groups[key] for key in sorted(groups)]


def _setting(settings: Facts) -> tuple[Any, ...]:
    options = tuple(sorted((name, str(number)) for name, number in settings["options"].items()))
    return ([*OPTIMIZERS].index(settings["optimizer"]), settings["lr"], options)


def _of_setting(settings: Facts) -> Facts:
    return {
        "optimizer": settings["optimizer"],
        "title": OPTIMIZERS[settings["optimizer"]].title,
        "lr": settings["lr"],
        "options": settings["options"],
    }


def _entry(runs: list[Trial], timing: list[Trial]) -> Facts:
    setting = _setting(runs[0]["settings"])
    timed = [trial for trial in timing if _setting(trial["settings"]) == setting]
    measures = {measure: _mean(runs, measure) for measure in MEASURES}
    accuracies = measures["test_accuracy"]["values"]
    return _of_setting(runs[0]["settings"]) | {
        "seeds": [run["settings"]["seed"] for run in runs],
        "timing_seeds": _seeds(timed),
        "diverged": sum(run["result"]["diverged"] for run in runs),
        "failed": sum(map(has_failed, accuracies)),
        "median": statistics.median(accuracies),
        "targets": {target: _target(runs, timed or runs, target) for target in TARGETS},
        "curves": curves(runs),
        "gradient_flow": gradient_flow(runs),
    } | measures  # fmt: skip


def _mean(runs: list[Trial], measure: str) -> Facts:
    """The values of all runs, their mean and its interval; no mean where a value is not known."""
    values = [value(run, measure) for run in runs]
    known = [number for number in values if number is not None]
    mean: Facts = dict.fromkeys(("mean", "low", "high"))
    if known == values:
        mean = asdict(interval(known))
    if measure.endswith("_accuracy") and mean["low"] is not None:  # a share, also where runs fail
        mean |= {"low": max(mean["low"], 0.0), "high": min(mean["high"], 1.0)}
    return mean | {"values": values}


def _target(runs: list[Trial], timed: list[Trial], target: str) -> Facts:
    """How many runs reach it, and by each clock the median over all: infinite if half miss it.

    Seconds are those of the `timed` runs.
    """
    facts: Facts = {"of": len(runs)}
    for clock in CLOCKS:
        values = [reached(run, target, clock) for run in (timed if clock == "seconds" else runs)]
        known = [time for time in values if time is not None]
        median = statistics.median(known) if known == values else None
        facts[clock] = {"median": median, "values": values}
    facts["reached"] = sum(math.isfinite(step) for step in facts["step"]["values"])
    return facts


def _difference(entry: Facts, other: Facts) -> Facts:
    """Of test accuracy, over the seeds that both have."""
    ours, theirs = (
        dict(zip(runs["seeds"], runs["test_accuracy"]["values"], strict=True))
        for runs in (entry, other)
    )
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return dict.fromkeys(("mean", "low", "high", "p")) | {"values": []}
    paired = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return asdict(paired) | {"values": [ours[seed] - theirs[seed] for seed in seeds]}


def _correct(differences: list[Facts]) -> None:
    """Correct the p-values of the differences in one table, and add what the table could see."""
    p_values = [behind["p"] for behind in differences]
    comparisons = sum(p is not None for p in p_values)
    for behind, p in zip(differences, holm(p_values), strict=True):
        behind["p_corrected"] = p
        behind["told_apart"] = None if p is None else p < LEVEL
        behind["detectable"] = None if p is None else detectable(behind["values"], comparisons)


def _add_gains(comparison: Facts, of_lr: Facts) -> None:
    """What tuning every hyper-parameter adds to tuning the learning rate, seed by seed."""
    gains = []
    for entry in comparison["ranking"]:
        before = [lr for lr in of_lr["ranking"] if lr["optimizer"] == entry["optimizer"]]
        entry["gain"] = _difference(entry, before[0]) if before else None
        gains += [entry["gain"]] if before else []
    _correct(gains)


def _selection(selected: list[Trial], searched: list[Trial], ranking: list[Facts]) -> list[Facts]:
    """The candidates of each optimizer on the selection seeds, the best mean first."""
    chosen = {_setting(entry) for entry in ranking}
    before = {
        _setting(trial["settings"]): value(trial, "validation_accuracy") for trial in searched
    }
    candidates = []
    for runs in _by_setting(selected):
        settings = runs[0]["settings"]
        accuracies = _accuracies(runs)
        candidates.append(
            _of_setting(settings)
            | {
                "searched": before.get(_setting(settings)),
                "values": accuracies,
                "mean": statistics.fmean(accuracies),
                "median": statistics.median(accuracies),
                "failed": sum(map(has_failed, accuracies)),
                "chosen": _setting(settings) in chosen,
            }
        )
    order = [*OPTIMIZERS]
    return sorted(
        candidates, key=lambda candidate: (order.index(candidate["optimizer"]), -candidate["mean"])
    )


def _sensitivity(optimizer: str, trials: list[Trial], ranking: list[Facts], at_edge: bool) -> Facts:
    """How much the learning rate (in the space "all", the whole setting) matters in the search.

    `best` is the chosen setting or, before the selection, the best of the search.
    """
    points = [
        {
            "lr": runs[0]["settings"]["lr"],
            "options": runs[0]["settings"]["options"],
            "accuracy": statistics.fmean(_accuracies(runs)),
            "loss": statistics.fmean(_losses(runs)),
            "diverged": any(run["result"]["diverged"] for run in runs),
        }
        for runs in _by_setting(trials)
    ]
    top = max(points, key=lambda point: (point["accuracy"], -point["loss"]))
    settings = [
        (entry["lr"], entry["options"]) for entry in ranking if entry["optimizer"] == optimizer
    ]
    chosen = [point for point in points if (point["lr"], point["options"]) in settings]
    best = chosen[0] if chosen else top
    rates = [point["lr"] for point in points]
    return {
        "optimizer": optimizer,
        "title": OPTIMIZERS[optimizer].title,
        "points": points,
        "best": best,
        "at_edge": at_edge and best["lr"] in (min(rates), max(rates)),
        "tried": len(points),
        "close": _close(points, top["accuracy"]),
        "failed": sum(has_failed(point["accuracy"]) for point in points),
        "diverged": sum(point["diverged"] for point in points),
    }


def _close(points: list[Facts], best: float) -> int:
    # Accuracies are shares of whole images, but floats: rounding must not decide.
    return sum(point["accuracy"] >= best - CLOSE - 1e-9 for point in points)


def _losses(runs: list[Trial]) -> list[float]:
    losses = [value(run, "validation_loss") for run in runs]
    return [math.inf if loss is None else loss for loss in losses]


def _accuracies(runs: list[Trial]) -> list[float]:
    accuracies = [value(run, "validation_accuracy") for run in runs]
    return [accuracy for accuracy in accuracies if accuracy is not None]


def curves(runs: list[Trial]) -> Facts:
    """The median, the lowest and the highest of all runs at each step that any of them recorded.

    A run that diverged goes on with the worst value, so that its end does not improve the median.
    """
    steps = sorted({step for run in runs for step in run["result"]["curves"]["step"]})
    epochs = {
        step: epoch
        for run in runs
        for step, epoch in zip(*_columns(run, "step", "epoch"), strict=True)
    }
    facts: Facts = {"step": steps, "epoch": [epochs[step] for step in steps]}
    for name in CURVES:
        at: dict[int, list[float]] = {step: [] for step in steps}
        for run in runs:
            recorded = dict(zip(*_columns(run, "step", name), strict=True))
            for step in steps:
                if (measured := recorded.get(step)) is not None:
                    at[step].append(measured)
                elif run["result"]["diverged"] and step >= run["result"]["diverged_at_step"]:
                    at[step].append(_worst(name))
        facts[name] = {
            label: [statistic(values) if values else None for values in at.values()]
            for label, statistic in (("median", statistics.median), ("low", min), ("high", max))
        }
    return facts


def gradient_flow(runs: list[Trial]) -> Facts:
    """The norm of each layer's gradient when first measured and at the end: medians over runs."""
    norms = [run["result"]["gradient_norms"] for run in runs]
    layers = [name for name in norms[0] if name != "step"]

    def over_runs(select: Callable[[list[float]], float]) -> list[float | None]:
        medians = []
        for layer in layers:
            known = [[norm for norm in run[layer] if norm is not None] for run in norms]
            selected = [select(values) for values in known if values]
            medians.append(statistics.median(selected) if selected else None)
        return medians

    return {
        "layers": layers,
        "first_step": min((run["step"][0] for run in norms if run.get("step")), default=None),
        "start": over_runs(lambda values: values[0]),
        "end": over_runs(lambda values: statistics.median(values[-LAST:])),
    }


def _columns(run: Trial, *names: str) -> list[list[Any]]:
    return [run["result"]["curves"][name] for name in names]


def without_curves(facts: Facts) -> Facts:
    """What is recorded: all but what is only drawn."""
    return facts | {
        "comparisons": [
            comparison
            | {
                "ranking": [
                    {name: facts for name, facts in entry.items() if name not in ONLY_DRAWN}
                    for entry in comparison["ranking"]
                ]
            }
            for comparison in facts["comparisons"]
        ]
    }
