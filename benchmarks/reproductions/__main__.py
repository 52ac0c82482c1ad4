"""Reproduce published results with these optimizers, and try them with wrong ones.

python -m benchmarks.reproductions --help
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.common.command import (
    Job,
    Parser,
    bars,
    conduct,
    name_among,
    pick_device,
    run,
    say,
)
from benchmarks.common.options import add_budget, add_data_dir, add_device, add_out
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.running import RESULT, Experiment, load_mnist, read_cases, run_cases
from benchmarks.reproductions.table import (
    summary,
    summary_of_checks,
    terminal_table,
    with_cases,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PROGRAM = "python -m benchmarks.reproductions"
REPORT_SECONDS = 60  # between two lines on one experiment, where there are no bars
EXAMPLES = f"""cases:
  {", ".join(CASES)}

examples:
  {PROGRAM}
  {PROGRAM} quadratic_adam nielsen_rates --budget quick
  {PROGRAM} --budget full --out runs/reproductions

With --resume, what is in --out with the same settings or a larger budget is not run again.
"""


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Run published experiments again, with these optimizers, and compare the\n"
        "figures; then run parts of them with wrong optimizers, to see which figures reject\n"
        "them. Most need MNIST: no other data can reproduce a figure.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "cases",
        nargs="*",
        type=name_among(CASES),
        metavar="CASE",
        help="which to run (default: all)",
    )
    add_budget(
        parser,
        {
            "quick": "a minute, to see that it works",
            "standard": "half an hour; DeepOBS' nets stop at 97 %%",
            "full": "several hours on a CPU; all nets are trained to the end",
        },
    )
    parser.add_argument(
        "--no-wrong", dest="wrong", action="store_false", help="leave out the wrong optimizers"
    )
    add_device(parser, default="cpu")
    add_data_dir(parser)
    add_out(parser, f"where {RESULT} is, or is to be")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return conduct(build_parser(), arguments, _work)


def _work(given: argparse.Namespace, job: Job) -> int:
    out, console = job.begin(RESULT), job.console
    names = given.cases or list(CASES)
    read_cases(out)
    device = pick_device(given.device)
    digits = None
    if any(CASES[name].needs_mnist for name in names):
        digits = load_mnist(given.data_dir, device, lambda text: say(console, text))
    job.keep(out, "finished experiments")
    with bars(console) as progress:
        results = run_cases(
            names, out, given.data_dir, _Reporter(progress, console), budget=given.budget,
            device=device, digits=digits, try_wrong=given.wrong, command=given.command,
        )  # fmt: skip
    results = with_cases(results, {name: CASES[name] for name in names})
    for result in results:
        console.print(terminal_table(result))
    say(console, f"{summary(results)}. {summary_of_checks(results)}.")
    job.end(out, RESULT, recorded=(RESULT,))
    return 0


class _Reporter:
    """Shows how far experiments are: by bars in a terminal, by lines elsewhere."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._all = progress.add_task("all experiments")

    def __call__(self, experiment: Experiment, number: int, total: int) -> Callable[[float], None]:
        title = CASES[experiment.case].title
        if experiment.wrong is not None:
            title += f"; wrong: {experiment.wrong}"
        bar = self._progress.add_task(title, total=1.0)
        began = reported = time.perf_counter()

        def on_share(share: float) -> None:
            nonlocal reported
            now = time.perf_counter()
            self._progress.update(bar, completed=share)
            if share >= 1:
                self._progress.update(bar, visible=False)
                self._progress.update(self._all, completed=number, total=total)
                say(self._console, f"[{number}/{total}] {title}: {now - began:.0f} s")
            elif not self._console.is_terminal and now - reported > REPORT_SECONDS:
                reported = now
                say(self._console, f"[{number}/{total}] {title}: {share:.0%}")

        return on_share


if __name__ == "__main__":
    run(main)
