"""The troubles of optimization, made visible.

python -m benchmarks.challenges --help
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.challenges import (
    gallery,
    generalization,
    local_minima,
    saddle_points,
    traps,
    vanishing_gradients,
)
from benchmarks.challenges import slides as drawing
from benchmarks.challenges.keeping import FACTS_FILE, keep
from benchmarks.challenges.setup import QUICK, Facts, Finding, OnProgress, Setup, Sizes
from benchmarks.challenges.slides import gallery as gallery_slides
from benchmarks.challenges.slides import generalization as generalization_slides
from benchmarks.challenges.slides import local_minima as local_minima_slides
from benchmarks.challenges.slides import saddle_points as saddle_points_slides
from benchmarks.challenges.slides import traps as traps_slides
from benchmarks.challenges.slides import vanishing_gradients as vanishing_gradients_slides
from benchmarks.common.command import (
    CannotRun,
    Job,
    Parser,
    bars,
    conduct,
    load_shown,
    name_among,
    run,
    say,
)
from benchmarks.common.data import Digits
from benchmarks.common.optimizers import DEFAULT_NAMES, OPTIMIZERS
from benchmarks.common.options import add_data, add_names, add_out, add_seed, default_out
from benchmarks.common.plots import png
from benchmarks.common.record import machine, versions

PROGRAM = "python -m benchmarks.challenges"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Experiment:
    title: str
    measure: Callable[[Setup, OnProgress], Facts]
    findings: Callable[[Facts], list[Finding]]
    draw: Callable[[Facts], drawing.Pictures]
    needs_digits: bool = True


EXPERIMENTS: dict[str, Experiment] = {
    "local_minima": Experiment(
        "Local minima", local_minima.measure, local_minima.findings, local_minima_slides.draw,
        needs_digits=False,
    ),
    "saddle_points": Experiment(
        "Saddle points", saddle_points.measure, saddle_points.findings, saddle_points_slides.draw
    ),
    "vanishing_gradients": Experiment(
        "Vanishing gradients", vanishing_gradients.measure, vanishing_gradients.findings,
        vanishing_gradients_slides.draw,
    ),
    "generalization": Experiment(
        "Optimization against generalization", generalization.measure, generalization.findings,
        generalization_slides.draw,
    ),
    "traps": Experiment("Traps", traps.measure, traps.findings, traps_slides.draw),
    "gallery": Experiment(
        "Gallery", gallery.measure, gallery.findings, gallery_slides.draw, needs_digits=False
    ),
}  # fmt: skip
ALL = "all"
OF_ALL = [name for name in EXPERIMENTS if name != "gallery"]
EXAMPLES = f"""examples:
  {PROGRAM}
  {PROGRAM} saddle_points --optimizers sgd adam
  {PROGRAM} local_minima --gallery --out pictures
"""


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Small experiments that show what a lecture on optimization says, and measure\n"
        "whether it holds. Each leaves pictures for slides and the facts behind them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "experiments",
        nargs="*",
        type=name_among([*OF_ALL, ALL]),
        metavar="EXPERIMENT",
        help=f"any of: {', '.join(OF_ALL)}, {ALL} (default: {ALL})",
    )
    parser.add_argument(
        "--gallery",
        action="store_true",
        help="draw the paths of all optimizers on all functions as well",
    )
    add_names(parser, "optimizers", OPTIMIZERS, " ".join(DEFAULT_NAMES))
    add_seed(parser, "weights, batches and noise")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="much smaller: shows that everything works, not what is true",
    )
    add_data(parser)
    add_out(parser, "where a directory for each experiment is made")
    return parser


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = build_parser()
    return conduct(parser, partial(_work, parser.parse_args(arguments), sizes))


def _work(given: argparse.Namespace, sizes: Sizes | None, job: Job) -> int:
    out, console = given.out or default_out(), job.console
    names = _chosen(given)
    sizes = sizes or (QUICK if given.quick else Sizes())
    job.claim(out)
    if there := [name for name in names if os.path.lexists(out / name)]:
        raise CannotRun(f"--out {out} has {there[0]} already; choose another directory")
    job.kept = f"finished and kept in {out}: nothing yet"
    finished: dict[str, list[Finding]] = {}
    with _one_thread():
        digits = _load(given, names, sizes, console)
        setup = Setup(tuple(given.optimizers or DEFAULT_NAMES), given.seed, digits, sizes)
        say(console, f"Results go to {out}")
        for name, findings in _run_all(names, setup, out, console):
            finished[name] = findings
            job.kept = f"finished and kept in {out}: {', '.join(finished)}"
    if given.quick:
        say(console, "Quick: these nets have hardly learnt, so that verdicts on them mean nothing.")
    for name, findings in finished.items():
        console.print(_table(EXPERIMENTS[name].title, findings))
    say(console, f"Pictures and {FACTS_FILE} are in {out}/{'|'.join(finished)}")
    say(console, f"Next, look at them:\n\n    tensorboard --logdir {shlex.quote(str(out))}\n")
    wrong = [f for findings in finished.values() for f in findings if f.theory and not f.holds]
    for finding in wrong:
        say(console, f"Not as computed: {finding.claim}: {finding.figures}")
    return int(bool(wrong))


def _chosen(given: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys(given.experiments)) or [ALL]
    if ALL in names:
        names = OF_ALL
    return [*names, *(["gallery"] if given.gallery else [])]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Nets this small gain little from a second thread, and where others compute lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(
    given: argparse.Namespace, names: list[str], sizes: Sizes, console: Console
) -> Digits | None:
    if not any(EXPERIMENTS[name].needs_digits for name in names):
        return None
    digits = load_shown(
        given.dataset,
        given.data_dir,
        CPU,
        sizes.train_images(),
        sizes.test_images,
        console,
    )
    say(console, f"Data: {digits.name}")
    return digits


def _run_all(
    names: list[str], setup: Setup, out: Path, console: Console
) -> Iterator[tuple[str, list[Finding]]]:
    with bars(console) as shown:
        everything = shown.add_task("all", total=len(names))
        for place, name in enumerate(names, start=1):
            experiment, began = EXPERIMENTS[name], time.perf_counter()
            one = shown.add_task(experiment.title, total=1.0)

            def on_progress(stage: str, share: float, one: Any = one, name: str = name) -> None:
                shown.update(
                    one, description=f"{EXPERIMENTS[name].title}: {stage}", completed=share
                )

            facts = experiment.measure(setup, on_progress)
            findings = experiment.findings(facts)
            on_progress("drawing", 1.0)
            pictures = {title: png(figure) for title, figure in experiment.draw(facts).items()}
            seconds = time.perf_counter() - began
            keep(out / name, _content(name, setup, facts, findings, seconds), pictures)
            shown.remove_task(one)
            shown.advance(everything)
            say(
                shown.console,
                f"[{place}/{len(names)}] {experiment.title}: {len(pictures)} pictures, "
                f"{len(findings)} findings, {seconds:.0f} s",
            )
            yield name, findings


def _content(
    name: str, setup: Setup, facts: Facts, findings: list[Finding], seconds: float
) -> dict[str, Any]:
    needs_digits = EXPERIMENTS[name].needs_digits
    return {
        "experiment": name,
        "optimizers": list(setup.optimizers),
        "seed": setup.seed,
        "dataset": setup.the_digits().name if needs_digits else None,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "machine": machine(CPU),
        "findings": [
            {"claim": found.claim, "figures": found.figures, "verdict": found.verdict}
            for found in findings
        ],
        "facts": facts,
    }


def _table(title: str, findings: list[Finding]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_style="bold")
    table.add_column("it is said", ratio=3)
    table.add_column("measured", ratio=4)
    table.add_column("verdict", no_wrap=True)
    for found in findings:
        table.add_row(found.claim, found.figures, found.verdict)
    return table


if __name__ == "__main__":
    run(main)
