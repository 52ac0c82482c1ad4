"""The sections of a report, their order and their text, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.statistics import CONFIDENCE, POWER
from benchmarks.study.analysis import CLOSE, TARGETS
from benchmarks.study.report.tables import (
    Table,
    gains_table,
    ranking_table,
    selection_table,
    sensitivity_table,
    targets_table,
)
from benchmarks.study.report.words import percent
from benchmarks.study.trial import AT_CHANCE, CHANCE

Facts = dict[str, Any]

TITLE = "Which optimizer for deep nets?"
LIMITS_TITLE = "What this does not show"
TRIALS_TITLE = "Every trial"
NOTHING = "No trial is finished yet."

TUNED = {"lr": "learning rate tuned", "all": "every hyper-parameter tuned"}
TESTS = (
    f"In brackets: {percent(CONFIDENCE, 0)} t intervals. p: paired t-test, corrected by Holm's "
    "method for the comparisons of one table."
)
DETECTABLE = (
    "Detectable: a true difference of that size would be found, at the strictest of Holm's levels, "
    f"with a probability of {percent(POWER, 0)}."
)
FAILURES = f"A failed run ends at chance, below {percent(AT_CHANCE, 0)} accuracy."


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    figures: Sequence[str]
    table: Table | None


def heading(comparison: Facts) -> str:
    """For instance: Deep sigmoid net 784-128×5-10: learning rate tuned, 3 epochs."""
    title, schedule = str(comparison["title"]), comparison["schedule"]
    scheduled = "" if schedule == "constant" else f", {schedule} schedule"
    epochs = _count(comparison["epochs"], "epoch")
    return (
        f"{title[0].upper()}{title[1:]}: {TUNED[comparison['search_space']]}, {epochs}{scheduled}"
    )


def conditions(comparison: Facts) -> str:
    """What was run, for the reader of a single page."""
    sizes = [f"{comparison[f'{part}_size']:,}" for part in ("train", "validation", "test")]
    parts = [
        f"{sizes[0]} images for training, {sizes[1]} for validation, {sizes[2]} for the test; "
        f"batch size {comparison['batch_size']}"
    ]
    if searched := comparison["sensitivity"]:
        rates = [point["lr"] for tuned in searched for point in tuned["points"]]
        counts = sorted({tuned["tried"] for tuned in searched})
        parts.append(
            f"search: {_range(counts, 'trial')} for each optimizer, learning rates "
            f"{min(rates):.3g} … {max(rates):.3g}, {_seeds(comparison['search_seeds'])}"
        )
    if comparison["selection"]:
        parts.append(f"selection: {_seeds(comparison['selection_seeds'])}")
    if comparison["ranking"]:
        parts.append(f"comparison: {_seeds(comparison['seeds'])}")
    return "; ".join(parts) + "."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _range(counts: Sequence[int], noun: str) -> str:
    if len(counts) == 1:
        return _count(counts[0], noun)
    return f"{counts[0]} … {counts[-1]} {noun}s"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} … {seeds[-1]}"
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def sections(comparison: Facts) -> Iterator[Section]:
    ranking = comparison["ranking"]
    if ranking:
        figures = ["ranking", "behind_the_best"] if len(ranking) > 1 else ["ranking"]
        yield Section("Ranking", _ranking_text(comparison), figures, ranking_table(comparison))
    if any(entry.get("gain") for entry in ranking):
        yield Section(
            "Gain over tuning the learning rate alone", _GAINS, [], gains_table(comparison)
        )
    if comparison["selection"]:
        yield Section("Selection", _selection_text(comparison), [], selection_table(comparison))
    if comparison["sensitivity"]:
        yield Section(
            "Sensitivity to the learning rate", _sensitivity_text(comparison), ["sensitivity"],
            sensitivity_table(comparison),
        )  # fmt: skip
    if ranking:
        yield Section("Learning curves", _CURVES, ["training_loss", "validation_error"], None)
        names = [f"time_to_{target.removeprefix('0.')}" for target in TARGETS]
        yield Section("Time to a target", _targets_text(ranking), names, targets_table(comparison))
    if ranking and all(entry["gradient_flow"]["layers"] for entry in ranking):
        yield Section("Gradient flow", _FLOW, ["gradient_flow"], None)


def verdict(comparison: Facts) -> str:
    """Which optimizer has the best mean, and from which others the tests do not separate it."""
    first, *others = comparison["ranking"]
    accuracy = percent(first["test_accuracy"]["mean"])
    text = f"{first['title']} has the best mean test accuracy, {accuracy}"
    if any(entry["difference"]["told_apart"] is None for entry in others):
        return f"{text}; one seed cannot tell whether by chance."
    close = [entry for entry in others if not entry["difference"]["told_apart"]]
    if not close:
        return f"{text}, and every other is significantly behind." if others else f"{text}."
    power = [
        f"{percent(entry['difference']['detectable'], unit='')} points ({entry['title']})"
        for entry in close
    ]
    return (
        f"{text}. The tests do not separate it from {_listed([e['title'] for e in close])}: with "
        f"these {_count(len(comparison['seeds']), 'seed')} they detect, with a probability of "
        f"{percent(POWER, 0)}, true differences from {_listed(power)} on."
    )


def in_short(comparisons: Sequence[Facts]) -> list[str]:
    """What belongs beside the table of the site."""
    lines = [f"* {heading(each)}. {verdict(each)} {conditions(each)}" for each in comparisons]
    errors = [percent(each["sampling_error"], unit="") for each in comparisons]
    notes = (
        f"{TESTS} {FAILURES} The intervals do not contain the choice of the test images, whose "
        f"standard error is {' or '.join(dict.fromkeys(errors))} points. A run that misses 97 % "
        "on the validation set counts as infinite (∞)."
    )
    return ["\n".join(lines), notes]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _ranking_text(comparison: Facts) -> str:
    ranking, images = comparison["ranking"], comparison["test_size"]
    error = percent(comparison["sampling_error"], unit=" points")
    lines = [
        f"**{verdict(comparison)}** The mean decides the order. Each optimizer has its chosen "
        f"setting and was trained with {_seeds(comparison['seeds'])}; a seed gives every "
        "optimizer the same initial weights and the same order of batches."
    ]
    if len(ranking) > 1:
        lines += [TESTS, DETECTABLE]
    if any(entry["failed"] for entry in ranking):
        lines.append(FAILURES)
    if any(entry["diverged"] for entry in ranking):
        lines.append(f"A run that diverged counts as guessing, {percent(CHANCE, 0)}.")
    lines.append(
        "**What is luck here:** the intervals cover initial weights and the order of batches, "
        "nothing else. Settings were chosen by a few seeds, and other seeds may choose another "
        f"candidate. {images:,} test images are a sample, whose standard error is {error} for each "
        "accuracy; it is not in the intervals, as all optimizers have the same images."
    )
    return " ".join(lines)


_GAINS = (
    "Test accuracy with every hyper-parameter tuned, minus that of the same optimizer with only "
    "the learning rate tuned, paired by seed. The wider search has the winner of the narrower one "
    "among its trials: where it won again, the gain is 0.00 with p = 1.000. A loss comes from the "
    f"small number of selection seeds. {TESTS} {DETECTABLE}"
)


def _selection_text(comparison: Facts) -> str:
    present = {candidate["optimizer"] for candidate in comparison["selection"]}
    tuned = comparison["sensitivity"]
    absent = [entry["title"] for entry in tuned if entry["optimizer"] not in present]
    text = (
        f"The best settings of the search, trained again with "
        f"{_seeds(comparison['selection_seeds'])}. The highest mean validation accuracy is chosen: "
        f"in the mean a failed seed counts in full, in a median of few seeds it may not. {FAILURES}"
    )
    if absent:
        text += f" {_listed(absent)} had one candidate only: all other trials ended at chance."
    return text


def _sensitivity_text(comparison: Facts) -> str:
    text = (
        "The validation error at the end, for each setting of the search. A wide valley forgives a "
        "wrong guess; its floor is what tuning can reach. The grey band is within "
        f"{percent(CLOSE, 0)} of the best of all. Circles: the chosen settings."
    )
    if any(tuned["diverged"] for tuned in comparison["sensitivity"]):
        text += " Crosses: trials that diverged."
    if any(tuned["failed"] for tuned in comparison["sensitivity"]):
        text += (
            f" At chance: trials that end below {percent(AT_CHANCE, 0)} accuracy, diverged or "
            "not; a saturated net learns nothing and diverges nowhere."
        )
    return text


_CURVES = "Lines: the median of all seeds. Bands: from the lowest to the highest."


def _targets_text(ranking: Sequence[Facts]) -> str:
    text = (
        "Medians over all runs. Evaluation is off the clock. Profiles: the earlier and the higher, "
        "the better; the dashed line is the end of the training."
    )
    if any(
        target["reached"] < target["of"]
        for entry in ranking
        for target in entry["targets"].values()
    ):
        text += (
            " A run that never reaches the target counts as infinite (∞), so the median is "
            "infinite if half of the runs miss it."
        )
    return f"{text} {_timing_text(ranking)}".rstrip()


def _timing_text(ranking: Sequence[Facts]) -> str:
    """Where the seconds come from, if the runs were stacked."""
    counts = sorted({len(entry["timing_seeds"]) for entry in ranking})
    if counts[-1]:
        runs = _range(counts, "solo run")
        return (
            f"Seconds are medians over {runs} of each setting; accuracies, steps and epochs come "
            "from stacked runs, which have no seconds of their own."
        )
    if any(t["seconds"]["median"] is None for entry in ranking for t in entry["targets"].values()):
        return "Stacked runs have no seconds of their own, and their solo runs are not finished."
    return ""


_FLOW = (
    "Dashed: early in the training of the best optimizer, at the step that the legend names. "
    "Colours: at the end of the training, the median of the last samples and of the seeds."
)
