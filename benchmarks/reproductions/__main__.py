"""Reproduce published results on MNIST with these optimizers.

python -m benchmarks.reproductions --help
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

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
from benchmarks.reproductions.running import RESULT, load_mnist, read_cases, run_cases
from benchmarks.reproductions.table import CaseResult, summary, terminal_table

PROGRAM = "python -m benchmarks.reproductions"
EXAMPLES = f"""cases:
  {", ".join(CASES)}

examples:
  {PROGRAM}
  {PROGRAM} nielsen_gradients algoperf_target --budget quick
  {PROGRAM} --budget full --out runs/reproductions

With --resume, cases that are in --out with the same settings or a larger budget are not run again.
"""


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Run published experiments on MNIST again, with these optimizers, and compare\n"
        "the figures. It needs MNIST: no other data can reproduce a figure.",
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
            "quick": "seconds, to see that it works",
            "standard": "minutes; DeepOBS' nets stop at 97 %%",
            "full": "two to three hours on a CPU; all nets are trained to the end",
        },
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
    finished: list[CaseResult] = []
    read_cases(out)
    device = pick_device(given.device)
    digits = load_mnist(given.data_dir, device, lambda text: say(console, text))
    job.keep(out, "finished cases")
    with bars(console) as shown:
        everything = shown.add_task("all", total=len(names))
        for place, name in enumerate(names, start=1):
            one = shown.add_task(CASES[name].title, total=1.0)

            def on_progress(name: str, share: float, one: Any = one) -> None:
                shown.update(one, completed=share)

            (found,) = run_cases(
                [name], out, given.data_dir, on_progress,
                budget=given.budget, device=device, digits=digits, command=given.command,
            )  # fmt: skip
            finished.append(found)
            shown.remove_task(one)
            shown.advance(everything)
            result = f"{found['title']}: {summary([found])}, {found['seconds']:.0f} s"
            say(shown.console, f"[{place}/{len(names)}] {result}")
    for found in finished:
        console.print(terminal_table(found))
    say(console, summary(finished))
    job.end(out, RESULT, recorded=(RESULT,))
    return 0


if __name__ == "__main__":
    run(main)
