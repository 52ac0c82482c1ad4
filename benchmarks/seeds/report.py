"""The answer in tables and sentences, for the terminal and for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.common import markdown
from benchmarks.common.nets import describe
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.statistics import detectable_difference
from benchmarks.seeds.analysis import FAILED_BELOW, UNSAFE, Answer
from benchmarks.seeds.resampling import INTERVALS

Rows = list[list[str]]

EXPLANATION = (
    f"A run fails if its test accuracy is below {FAILED_BELOW:.0%}. A learning rate is unsafe if "
    f"at least {UNSAFE:.0%} more of its runs fail than at the best rate. Points lost: how far the "
    "mean test accuracy at the chosen rate is below that at the best rate. Detectable difference: "
    "the median pair, by a paired t-test with 80 % power. The intervals are those of paired "
    "differences."
)

INTERVAL_TITLES = {"t": "t", "percentile": "percentile", "bca": "BCa"}
PAIR_SEEDS = (1, 3, 10)  # of which the table of pairs has columns
SURE = 0.95
MOST_SEEDS = 1_000  # beyond which they are not counted


def title(answer: Answer, settings: dict[str, Any]) -> str:
    net = answer["net"]
    return describe(net, settings["depths"][net], settings["width"], settings["inputs"])


def order_rows(answer: Answer) -> Rows:
    """How often a comparison of few seeds is right, and what it can see."""
    counts, pairs = answer["counts"], answer["pairs"]
    rows = [["seeds", *map(str, counts)]]
    for series in answer["order"]:
        how = _selection_title(series["selection_seeds"])
        if series["selection_seeds"] in (None, 1):
            for what, name in (
                (f"one of {len(pairs)} pairs in order", "pair"),
                ("the best optimizer first", "winner"),
                ("the whole ranking", "ranking"),
            ):
                rows.append([f"{what}{how}", *map(_percent, series[name])])
    several = [k for k in counts if k > 1]
    gap = [""] * (len(counts) - len(several))
    smallest = [_median([pair["detectable"][i] for pair in pairs]) for i in range(len(several))]
    rows.append(["detectable difference, points", *gap, *map(_points, smallest)])
    for kind in INTERVALS:
        shares = [mean_coverage(answer, kind, i) for i in range(len(several))]
        rows.append([f"95 % {INTERVAL_TITLES[kind]} interval covers", *gap, *map(_percent, shares)])
    return rows


def mean_coverage(answer: Answer, kind: str, number: int) -> float | None:
    """Over the pairs that differ from seed to seed."""
    shares = [pair["coverage"][kind][number] for pair in answer["pairs"]]
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else None


def optimizer_rows(answer: Answer) -> Rows:
    """Each optimizer at its best rate, and what choosing the rate by few seeds costs."""
    choices = answer["selection"]
    by = f"by {_series(choice['seeds'] for choice in choices)} seeds"
    rows = [["optimizer", "rate", "accuracy, %", "sd", "failed, %"]]
    rows[0] += [f"unsafe {by}, %", f"points lost {by}"]
    for i, best in enumerate(answer["optimizers"]):
        chosen = [choice["optimizers"][i] for choice in choices]
        row = [OPTIMIZERS[best["optimizer"]].title, f"{best['lr']:g}"]
        row += [_points(best["test_accuracy"]), _points(best["deviation"])]
        row += [_whole(best["failed"]), _series(_whole(one["unsafe"]) for one in chosen)]
        rows.append([*row, _series(f"{100 * one['lost_accuracy']:.1f}" for one in chosen)])
    return rows


def pair_rows(answer: Answer) -> Rows:
    """Each pair, the clearest difference first."""
    counts = [k for k in PAIR_SEEDS if k in answer["counts"]]
    rows = [["better", "worse", "difference, points", "sd of differences"]]
    rows[0] += [f"in order by {_series(counts)} seeds, %", "seeds for 80 % power"]
    for pair in sorted(answer["pairs"], key=effect, reverse=True):
        names = [OPTIMIZERS[pair[side]].title for side in ("better", "worse")]
        right = _series(_whole(pair["right"][answer["counts"].index(k)]) for k in counts)
        needed = seeds_needed(pair["difference"], pair["deviation"])
        row = [*names, _points(pair["difference"]), _points(pair["deviation"]), right]
        rows.append([*row, f"over {MOST_SEEDS:,}" if needed is None else str(needed)])
    return rows


def effect(pair: dict[str, Any]) -> float:
    """The difference in standard deviations."""
    return float(pair["difference"] / pair["deviation"]) if pair["deviation"] else float("inf")


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The fewest seeds by which a paired t-test sees a true difference in 80 % of cases."""
    enough = (
        seeds
        for seeds in range(2, MOST_SEEDS + 1)
        if detectable_difference(deviation, seeds) <= difference
    )
    return next(enough, None)


def sentences(answer: Answer) -> list[str]:
    """What the tables say, in a few words."""
    known, by_one, *_ = answer["order"]
    counts = answer["counts"]
    lines = [
        f"With one seed the best optimizer comes out first in {_percent(known['winner'][0])} of "
        f"comparisons, and a pair is in order in {_percent(known['pair'][0])}; if one seed also "
        f"chooses the learning rates, in {_percent(by_one['winner'][0])} and "
        f"{_percent(by_one['pair'][0])}."
    ]
    for what, name in (("best optimizer", "winner"), ("whole ranking", "ranking")):
        enough = [k for k, share in zip(counts, known[name], strict=True) if share >= SURE]
        lines.append(
            f"The {what} is right in at least {_percent(SURE)} of comparisons with {enough[0]} "
            f"{_seeds(enough[0])}."
            if enough
            else f"{counts[-1]} {_seeds(counts[-1])} have the {what} right in "
            f"{_percent(known[name][-1])} of comparisons."
        )
    if answer["pairs"]:
        closest = min(answer["pairs"], key=effect)
        names = [OPTIMIZERS[closest[side]].title for side in ("better", "worse")]
        needed = seeds_needed(closest["difference"], closest["deviation"])
        many = f"over {MOST_SEEDS:,}" if needed is None else str(needed)
        lines.append(
            f"{' and '.join(names)} are the closest pair: {_points(closest['difference'])} points, "
            f"which a paired t-test sees with 80 % power if it has {many} seeds."
        )
    first = answer["selection"][0]["optimizers"]
    worst = max(range(len(first)), key=lambda i: float(first[i]["unsafe"]))
    if first[worst]["unsafe"] > 0:
        by = [
            f"{_percent(choice['optimizers'][worst]['unsafe'])} with {choice['seeds']}"
            for choice in answer["selection"]
        ]
        lines.append(
            f"{OPTIMIZERS[first[worst]['optimizer']].title} most often gets an unsafe learning "
            f"rate: in {', '.join(by)} seeds."
        )
    return lines


def terminal_tables(answer: Answer, settings: dict[str, Any]) -> Iterator[Table]:
    for rows in (order_rows(answer), optimizer_rows(answer), pair_rows(answer)):
        table = Table(box=box.SIMPLE_HEAD, title=title(answer, settings), title_justify="left")
        for i, name in enumerate(rows[0]):
            table.add_column(name, justify="right" if i else "left")
        for row in rows[1:]:
            table.add_row(*row)
        yield table


def markdown_text(recorded: dict[str, Any]) -> str:
    parts = []
    for answer in recorded["answers"]:
        name = title(answer, recorded["settings"])
        parts += [
            f"**{name[0].upper()}{name[1:]}**, {answer['seeds']} seeds of {_list(answer)}. "
            + " ".join(sentences(answer)),
            markdown.table(order_rows(answer), texts=1),
            markdown.table(optimizer_rows(answer), texts=1),
        ]
    return "\n\n".join([*parts, EXPLANATION])


def _list(answer: Answer) -> str:
    return ", ".join(OPTIMIZERS[one["optimizer"]].title for one in answer["optimizers"])


def _series(items: Iterable[object]) -> str:
    return "/".join(map(str, items))


def _selection_title(seeds: int | None) -> str:
    return "" if seeds is None else f", rates chosen by {seeds} {_seeds(seeds)}"


def _seeds(count: int) -> str:
    return "seed" if count == 1 else "seeds"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{_whole(share)} %"


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
