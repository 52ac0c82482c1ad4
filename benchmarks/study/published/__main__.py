"""Reproduce published numbers on MNIST with our optimizers.

python -m benchmarks.study.published --help
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial

from rich import box
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

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
from benchmarks.common.options import add_data_dir, add_device, add_out, default_out
from benchmarks.study.published.case import BUDGETS, DIFFERS, NOT_RUN, REPRODUCED
from benchmarks.study.published.cases import CASES
from benchmarks.study.published.running import RESULT, Found, load_mnist, read_cases, run_cases

PROGRAM = "python -m benchmarks.study.published"
EXAMPLES = f"""cases:
  {", ".join(CASES)}

examples:
  {PROGRAM}
  {PROGRAM} nielsen_gradients algoperf_target --budget quick
  {PROGRAM} --budget full --out runs/published

Cases that are in --out already, with the same settings or a larger budget, are not run again.
"""


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Run published experiments on MNIST again, with our optimizers, and compare\n"
        "the figures. It insists on MNIST: no stand-in can reproduce a number.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "cases",
        nargs="*",
        type=name_among(CASES),
        metavar="CASE",
        help="which to run (default: all)",
    )
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="standard",
        help="quick takes seconds to show that everything works; standard, minutes, stops "
        "DeepOBS' nets at 97 %%; full, two to three hours on a CPU, trains all to the end "
        "(default: standard)",
    )
    add_device(parser, default="cpu")
    add_data_dir(parser)
    add_out(parser, f"where {RESULT} is, or is to be")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    return conduct(parser, partial(_work, parser.parse_args(arguments)))


def _work(given: argparse.Namespace, job: Job) -> int:
    out, console = given.out or default_out(), job.console
    names = given.cases or list(CASES)
    finished: list[Found] = []
    job.claim(out)
    read_cases(out)
    device = pick_device(given.device)
    digits = load_mnist(given.data_dir, device, lambda text: say(console, text))
    command = f"{PROGRAM} {shlex.join([*given.cases, '--budget', given.budget, '--out', str(out)])}"
    job.kept = f"finished cases are kept. Go on with:\n\n    {command}\n"
    say(console, f"Results go to {out / RESULT}")
    with bars(console) as shown:
        everything = shown.add_task("all", total=len(names))
        for place, name in enumerate(names, start=1):
            one = shown.add_task(CASES[name].title, total=1.0)

            def on_progress(name: str, share: float, one: TaskID = one) -> None:
                shown.update(one, completed=share)

            (found,) = run_cases(
                [name], out, given.data_dir, on_progress,
                budget=given.budget, device=device, digits=digits,
            )  # fmt: skip
            finished.append(found)
            shown.remove_task(one)
            shown.advance(everything)
            say(shown.console, f"[{place}/{len(names)}] {in_a_line(found)}")
    for found in finished:
        console.print(table(found))
    return 0


def in_a_line(found: Found) -> str:
    verdicts = [row["verdict"] for row in found["rows"]]
    counts = [
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in (REPRODUCED, DIFFERS, NOT_RUN)
        if verdict in verdicts
    ]
    return f"{found['title']}: {', '.join(counts)}, {found['seconds']:.0f} s"


def table(found: Found) -> Table:
    # As `Text`, in which nothing is markup.
    drawn = Table(title=Text(found["title"]), box=box.SIMPLE_HEAD, title_style="bold")
    drawn.add_column("quantity", ratio=4)
    drawn.add_column("theirs", justify="right")
    drawn.add_column("ours", justify="right")
    drawn.add_column("verdict", no_wrap=True)
    drawn.add_column("note", ratio=5)
    for row in found["rows"]:
        drawn.add_row(
            Text(row["quantity"]), _figure(row["theirs"]), _figure(row["ours"]), row["verdict"],
            Text(row["note"]),
        )  # fmt: skip
    return drawn


def _figure(value: float | Sequence[float] | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Sequence):
        return " … ".join(map(_figure, value))
    return f"{value:.5g}"


if __name__ == "__main__":
    run(main)
