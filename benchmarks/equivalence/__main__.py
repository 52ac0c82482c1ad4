"""The atlas of equivalence: all implementations of all option cases against torch, bit by bit.

python -m benchmarks.equivalence --help
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.command import Job, Parser, bars, conduct, run, say, whole_number
from benchmarks.common.implementations import ENGINES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.option_cases import OPTION_CASES, Options
from benchmarks.common.options import add_names, add_out, add_seed, check_new, default_out
from benchmarks.common.record import machine, versions, write_atomically, write_json
from benchmarks.common.workers import workers
from benchmarks.equivalence.atlas import (
    DTYPES,
    FAILED,
    PROMISED,
    REFERENCE,
    Row,
    compare_case,
    implementations,
)
from benchmarks.equivalence.report import (
    EXPLANATION,
    draw_atlas,
    report,
    summary,
    terminal_table,
    verdict,
)

PROGRAM = "python -m benchmarks.equivalence"
RESULT = "equivalence.json"
STEPS, QUICK_STEPS = 300, 20
# Ours; of torch's all are compared. Fused compiles for each option and dtype: minutes in all.
DEFAULT_ENGINES = ("default", "loop", "foreach")
EXAMPLES = f"""examples:
  {PROGRAM}
  {PROGRAM} --quick
  {PROGRAM} --engines {" ".join(ENGINES)}
  {PROGRAM} --optimizers adam --dtypes float32 --steps 1000

Engines are ours; torch's and variants are always compared. Our fused engine is not among the
defaults: it compiles for each option and dtype, which takes minutes in all.


Ends with status 1 if {", ".join(PROMISED[:-1])} or {PROMISED[-1]} differs in a bit.
"""
FACTS = {
    "reference": f"{REFERENCE}: torch.optim with foreach=False, fused=False",
    "compared": "tensors: every parameter and every state after every step; of variants the "
    "parameters alone",
    "max_ulps": "the largest distance of two numbers, over all steps, in representable numbers; "
    "2**63 - 1 stands for more than that and for NaN against a number. Small differences of "
    "numbers near zero are many",
    "max_difference": "the largest absolute difference of two parameters, which start normally "
    "distributed; null: NaN or infinity against a number. Only where something differs",
    "gradients": "normally distributed, in each parameter scaled from 10 at its first element down "
    "to 1e-6 at its last; one parameter has none at every third step",
}

Case = tuple[str, Options, str]
Map = Callable[[Callable[[Case], Row], list[Case]], Iterator[Row]]


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Compare every optimizer, option, dtype and engine with torch, bit by bit.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    choices = {"optimizers": list(OPTIMIZERS), "dtypes": list(DTYPES), "engines": list(ENGINES)}
    for option, valid in choices.items():
        default = ", ".join(DEFAULT_ENGINES) if option == "engines" else "all"
        add_names(parser, option, valid, default)
    parser.add_argument(
        "--steps",
        type=whole_number("steps"),
        metavar="N",
        help=f"how many steps are compared (default: {STEPS}, with --quick {QUICK_STEPS})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few steps, and of each optimizer the defaults and the last option case alone",
    )
    add_seed(parser, "parameters and gradients")
    add_out(parser)
    return parser


def main(arguments: Sequence[str] | None = None, processes: int | None = None) -> int:
    parser = build_parser()
    given = parser.parse_args(arguments)
    return conduct(parser, partial(_work, given, processes or os.cpu_count() or 1))


def _work(given: argparse.Namespace, processes: int, job: Job) -> int:
    out, console = given.out or default_out(), job.console
    job.claim(out)
    check_new(out)
    recorded = _begin(given)
    write_json(out / RESULT, recorded)
    job.kept = f"what was compared is in {out}"
    say(console, f"Results go to {out}")
    try:
        _compare_all(recorded, _cases(given), out, console, processes)
    finally:
        _write(recorded, out)
    console.print(terminal_table(recorded))
    console.print(EXPLANATION, style="dim", markup=False, highlight=False)
    say(console, verdict(recorded))
    say(console, f"Tables and picture: equivalence.md, equivalence.png in {out}")
    return int(any(map(_breaks_a_promise, recorded["rows"])))


def _begin(given: argparse.Namespace) -> dict[str, Any]:
    engines = given.engines or list(DEFAULT_ENGINES)
    return {
        "settings": {
            "optimizers": given.optimizers or list(OPTIMIZERS),
            "dtypes": given.dtypes or list(DTYPES),
            "engines": engines,
            "implementations": implementations(engines),
            "steps": given.steps or (QUICK_STEPS if given.quick else STEPS),
            "quick": given.quick,
            "seed": given.seed,
        },
        "facts": FACTS,
        "machine": machine(torch.device("cpu")) | {"torch_threads": 1},
        "versions": versions(),
        "rows": [],
    }


def _cases(given: argparse.Namespace) -> list[Case]:
    """With --quick the first and the last line of each optimizer's table."""
    cases = []
    for optimizer in given.optimizers or OPTIMIZERS:
        table = OPTION_CASES[optimizer]
        for options in (table[0], table[-1]) if given.quick else table:
            cases += [(optimizer, options, dtype) for dtype in given.dtypes or DTYPES]
    return cases


def _compare_all(
    recorded: dict[str, Any], cases: list[Case], out: Path, console: Console, processes: int
) -> None:
    """Case by case, written after each: an interrupted job keeps what it has."""
    settings, rows = recorded["settings"], recorded["rows"]
    compare = partial(_compare, **{name: settings[name] for name in ("engines", "steps", "seed")})
    dtypes = len(settings["dtypes"])
    with bars(console) as shown, _processes(processes) as each:
        everything = shown.add_task("all", total=len(cases))
        for place, row in enumerate(each(compare, cases), start=1):
            rows.append(row)
            shown.advance(everything)
            if place % dtypes == 0:
                write_json(out / RESULT, recorded)
                title = f"{OPTIMIZERS[row['optimizer']].title}, {row['options']}"
                step = f"[{place // dtypes}/{len(cases) // dtypes}]"
                say(shown.console, f"{step} {title}: {summary(rows[-dtypes:])}")


@contextmanager
def _processes(count: int) -> Iterator[Map]:
    """A `map` over several processes of one thread each: the tensors are too small for more."""
    if count == 1:
        yield map
    else:
        with workers(count, torch.set_num_threads, 1) as some:

            def each(work: Callable[[Case], Row], cases: list[Case]) -> Iterator[Row]:
                futures = [some.submit(work, case) for case in cases]
                return (future.result() for future in futures)

            yield each


def _compare(case: Case, **settings: Any) -> Row:
    return compare_case(*case, **settings)


def _breaks_a_promise(row: Row) -> bool:
    differs = any(row["max_ulps"].get(name) for name in PROMISED)
    return differs or bool(row[FAILED])


def _write(recorded: dict[str, Any], out: Path) -> None:
    write_json(out / RESULT, recorded)
    if recorded["rows"]:
        write_atomically(out / "equivalence.md", report(recorded))
        write_atomically(out / "equivalence.png", draw_atlas(recorded))


if __name__ == "__main__":
    run(main)
