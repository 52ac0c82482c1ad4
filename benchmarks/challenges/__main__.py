"""Experiments on what makes optimization hard.

python -m benchmarks.challenges --help
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.table import Table

from benchmarks.challenges import (
    conditioning,
    depth,
    gallery,
    generalization,
    local_minima,
    pitfalls,
    saddle_points,
    vanishing_gradients,
)
from benchmarks.challenges.artifacts import FACTS_FILE, draw, write_artifacts
from benchmarks.challenges.experiment import (
    QUICK,
    Curve,
    Finding,
    OnProgress,
    Results,
    Setup,
    Sizes,
)
from benchmarks.common.command import (
    CannotRun,
    Job,
    Parser,
    bars,
    conduct,
    name_among,
    pick_device,
    run,
    say,
)
from benchmarks.common.data import Digits
from benchmarks.common.optimizers import DEFAULT_NAMES, OPTIMIZERS
from benchmarks.common.options import add_budget, add_data, add_device, add_names, add_out, add_seed
from benchmarks.common.reading import Shape, many, read_results, text, whole
from benchmarks.common.record import conditions

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRAM = "python -m benchmarks.challenges"
FINISHED: Shape = {"optimizers": many(text), "seed": whole(), "budget": text}


@dataclass(frozen=True)
class Experiment:
    title: str
    measure: Callable[[Setup, OnProgress], Results]
    findings: Callable[[Results], list[Finding]]
    curves: Callable[[Results], list[Curve]] = lambda results: []  # for TensorBoard
    needs_digits: bool = True


EXPERIMENTS: dict[str, Experiment] = {
    "conditioning": Experiment(
        "Ill-conditioning and momentum", conditioning.measure, conditioning.findings,
        needs_digits=False,
    ),
    "local_minima": Experiment(
        "Local minima", local_minima.measure, local_minima.findings, needs_digits=False
    ),
    "saddle_points": Experiment("Saddle points", saddle_points.measure, saddle_points.findings),
    "vanishing_gradients": Experiment(
        "Vanishing gradients", vanishing_gradients.measure, vanishing_gradients.findings,
        vanishing_gradients.curves,
    ),
    "depth": Experiment("Depth and epsilon", depth.measure, depth.findings, depth.curves),
    "generalization": Experiment(
        "Optimization against generalization", generalization.measure, generalization.findings,
        generalization.curves,
    ),
    "pitfalls": Experiment("Pitfalls", pitfalls.measure, pitfalls.findings),
    "gallery": Experiment("Gallery", gallery.measure, gallery.findings, needs_digits=False),
}  # fmt: skip
ALL = "all"
EXAMPLES = f"""examples:
  {PROGRAM}
  {PROGRAM} saddle_points --optimizers sgd adam
  {PROGRAM} local_minima gallery --out figures
"""


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Small experiments on what makes optimization hard. Each tests common claims\n"
        "and writes figures for slides, with the results behind them.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "experiments",
        nargs="*",
        type=name_among([*EXPERIMENTS, ALL]),
        metavar="EXPERIMENT",
        help=f"any of: {', '.join(EXPERIMENTS)}, {ALL} (default: {ALL})",
    )
    add_names(parser, "optimizers", OPTIMIZERS, " ".join(DEFAULT_NAMES))
    add_seed(parser, "weights, batches and noise")
    add_budget(parser, {"quick": "much smaller, to see that it works", "standard": "minutes"})
    add_device(parser)
    add_data(parser)
    add_out(parser, "where a directory for each experiment is made")
    return parser


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    return conduct(build_parser(), arguments, partial(_work, sizes=sizes))


def _work(given: argparse.Namespace, job: Job, sizes: Sizes | None) -> int:
    out, console, device = job.begin(f"*/{FACTS_FILE}"), job.console, pick_device(given.device)
    names = [name for name in _chosen(given) if not _is_finished(out / name, given)]
    sizes = sizes or (QUICK if given.budget == "quick" else Sizes())
    finished: dict[str, list[Finding]] = {}
    with _one_thread():
        digits = _load(names, sizes, device, job)
        optimizers = tuple(given.optimizers or DEFAULT_NAMES)
        setup = Setup(optimizers, given.seed, digits, sizes, device)
        job.keep(out, "finished experiments")
        for name, findings in _run_all(names, setup, out, job):
            finished[name] = findings
    if given.budget == "quick":
        say(console, "Quick: these nets have hardly been trained; verdicts on them mean nothing.")
    for name, findings in finished.items():
        console.print(_table(EXPERIMENTS[name].title, findings))
    wrong = [f for findings in finished.values() for f in findings if f.theory and not f.holds]
    for finding in wrong:
        say(console, f"Not as computed: {finding.claim}: {finding.measured}")
    recorded = [f"{name}/*.{ending}" for name in EXPERIMENTS for ending in ("json", "png")]
    job.end(out, "", recorded=recorded, tensorboard=".")
    return int(bool(wrong))


def _chosen(given: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys(given.experiments)) or [ALL]
    return list(EXPERIMENTS) if ALL in names else names


@contextmanager
def _one_thread() -> Iterator[None]:
    """Nets this small gain little from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_finished(folder: Path, given: argparse.Namespace) -> bool:
    """Whether a job that is resumed has done this experiment already, with the same settings."""
    try:
        content = read_results(folder / FACTS_FILE, FINISHED, "an experiment")
    except FileNotFoundError:
        return False
    asked = {
        "optimizers": given.optimizers or list(DEFAULT_NAMES),
        "seed": given.seed,
        "budget": given.budget,
    }
    for name, value in asked.items():
        if content[name] != value:
            raise CannotRun(f"{folder} has {name} {content[name]}, not {value}; choose another")
    return True


def _load(names: list[str], sizes: Sizes, device: torch.device, job: Job) -> Digits | None:
    if not any(EXPERIMENTS[name].needs_digits for name in names):
        return None
    given, images = job.given, (sizes.train_images(), sizes.test_images)
    digits = job.load_digits(given.dataset, given.data_dir, device, *images)
    say(job.console, f"Data: {digits.name}")
    return digits


def _run_all(
    names: list[str], setup: Setup, out: Path, job: Job
) -> Iterator[tuple[str, list[Finding]]]:
    with bars(job.console) as progress:
        everything = progress.add_task("all", total=len(names))
        for number, name in enumerate(names, start=1):
            experiment, started = EXPERIMENTS[name], time.perf_counter()
            task = progress.add_task(experiment.title, total=1.0)
            on_progress = partial(_show, progress, task, experiment.title)
            results = experiment.measure(setup, on_progress)
            findings = experiment.findings(results)
            on_progress("drawing", 1.0)
            figures = draw(name, results)
            seconds = time.perf_counter() - started
            about = conditions(setup.device, job.given.command) | {"budget": job.given.budget}
            content = about | _content(name, setup, results, findings, seconds)
            write_artifacts(out / name, content, figures, experiment.curves(results))
            progress.remove_task(task)
            progress.advance(everything)
            say(
                progress.console,
                f"[{number}/{len(names)}] {experiment.title}: {len(figures)} figures, "
                f"{len(findings)} findings, {seconds:.0f} s",
            )
            yield name, findings


def _show(progress: Progress, task: TaskID, title: str, stage: str, share: float) -> None:
    progress.update(task, description=f"{title}: {stage}", completed=share)


def _content(
    name: str, setup: Setup, results: Results, findings: list[Finding], seconds: float
) -> dict[str, Any]:
    needs_digits = EXPERIMENTS[name].needs_digits
    return {
        "experiment": name,
        "optimizers": list(setup.optimizers),
        "seed": setup.seed,
        "dataset": setup.require_digits().name if needs_digits else None,
        "seconds": round(seconds, 1),
        "findings": [
            {"claim": finding.claim, "measured": finding.measured, "verdict": finding.verdict}
            for finding in findings
        ],
        "results": results,
    }


def _table(title: str, findings: list[Finding]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_style="bold")
    table.add_column("claim", ratio=3)
    table.add_column("measured", ratio=4)
    table.add_column("verdict", no_wrap=True)
    for finding in findings:
        table.add_row(finding.claim, finding.measured, finding.verdict)
    return table


if __name__ == "__main__":
    run(main)
