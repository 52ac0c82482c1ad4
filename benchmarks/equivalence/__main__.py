"""Compare every optimizer, option, dtype and engine with torch, bit by bit.

python -m benchmarks.equivalence --help
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.command import (
    Job,
    Parser,
    bars,
    conduct,
    pick_device,
    run,
    say,
)
from benchmarks.common.implementations import ENGINES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.option_cases import OPTION_CASES, Options
from benchmarks.common.options import (
    add_budget,
    add_device,
    add_names,
    add_number,
    add_out,
    add_seed,
)
from benchmarks.common.reading import begin_results
from benchmarks.common.record import conditions, write_atomically, write_json
from benchmarks.common.workers import workers
from benchmarks.equivalence.atlas import (
    DTYPES,
    FAILED,
    PROMISED,
    REFERENCE,
    Comparison,
    compare_case,
    implementations,
)
from benchmarks.equivalence.report import (
    EXPLANATION,
    RECORDED,
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
  {PROGRAM} --budget quick
  {PROGRAM} --engine {" ".join(ENGINES)}
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

OptionCase = tuple[str, Options, str]
Compare = Callable[..., Comparison]
Map = Callable[[Compare, list[OptionCase]], Iterator[Comparison]]


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Compare every optimizer, option, dtype and engine with torch, bit by bit.",
        epilog=EXAMPLES,
    )
    add_names(parser, "optimizers", OPTIMIZERS)
    add_names(parser, "dtypes", DTYPES)
    add_names(parser, "engine", ENGINES, " ".join(DEFAULT_ENGINES))
    add_device(parser)
    add_budget(
        parser,
        {
            "quick": f"{QUICK_STEPS} steps, and of each optimizer the first and the last option "
            "case alone",
            "standard": f"{STEPS} steps of all",
        },
    )
    add_number(parser, "steps", "how many steps are compared (default: of the budget)")
    add_seed(parser, "parameters and gradients")
    add_out(parser)
    return parser


def main(arguments: Sequence[str] | None = None, processes: int | None = None) -> int:
    work = partial(_work, processes=processes or os.cpu_count() or 1)
    return conduct(build_parser(), arguments, work)


def _work(given: argparse.Namespace, job: Job, processes: int) -> int:
    out, console = job.begin(RESULT), job.console
    device = pick_device(given.device)
    begun = _begin(given, device)
    recorded = begin_results(out / RESULT, begun, RECORDED, given.resume)
    job.keep(out, "finished comparisons")
    if device.type == "cuda":
        processes = 1  # a single one keeps the GPU busy
    try:
        _compare_all(recorded, _cases(given), out, console, processes)
    finally:
        _write(recorded, out)
    console.print(terminal_table(recorded))
    console.print(EXPLANATION, style="dim", markup=False, highlight=False)
    say(console, verdict(recorded))
    job.end(out, "equivalence.md", recorded=(RESULT, "*.png"))
    return int(any(map(_breaks_a_promise, recorded["rows"])))


def _begin(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    engines = given.engine or list(DEFAULT_ENGINES)
    at = conditions(device, given.command)
    at["machine"]["torch_threads"] = 1  # of each process
    return {
        "settings": {
            "optimizers": given.optimizers or list(OPTIMIZERS),
            "dtypes": given.dtypes or list(DTYPES),
            "engines": engines,
            "implementations": implementations(engines),
            "device": device.type,
            "steps": given.steps or (QUICK_STEPS if given.budget == "quick" else STEPS),
            "budget": given.budget,
            "seed": given.seed,
        },
        "facts": FACTS,
        **at,
        "rows": [],
    }


def _cases(given: argparse.Namespace) -> list[OptionCase]:
    """With --budget quick the first and the last line of each optimizer's table."""
    cases = []
    for optimizer in given.optimizers or OPTIMIZERS:
        table = OPTION_CASES[optimizer]
        for options in (table[0], table[-1]) if given.budget == "quick" else table:
            cases += [(optimizer, options, dtype) for dtype in given.dtypes or DTYPES]
    return cases


def _compare_all(
    recorded: dict[str, Any], cases: list[OptionCase], out: Path, console: Console, processes: int
) -> None:
    """OptionCase by case, written after each: an interrupted job keeps what it has."""
    settings, rows = recorded["settings"], recorded["rows"]
    names = ("engines", "steps", "seed", "device")
    compare = partial(compare_case, **{name: settings[name] for name in names})
    dtypes = len(settings["dtypes"])
    with bars(console) as shown, _processes(processes) as each:
        everything = shown.add_task("all", total=len(cases))
        shown.advance(everything, len(rows))
        for place, row in enumerate(each(compare, cases[len(rows) :]), start=len(rows) + 1):
            rows.append(row)
            shown.advance(everything)
            if place % dtypes == 0:
                write_json(out / RESULT, recorded)
                title = f"{OPTIMIZERS[row['optimizer']].title}, {row['options']}"
                step = f"[{place // dtypes}/{len(cases) // dtypes}]"
                say(shown.console, f"{step} {title}: {summary(rows[-dtypes:])}")


@contextmanager
def _processes(count: int) -> Iterator[Map]:
    """A `starmap` over several processes of one thread each: the tensors are too small for more."""
    if count == 1:
        yield starmap
    else:
        with workers(count, torch.set_num_threads, 1) as some:

            def each(compare: Compare, cases: list[OptionCase]) -> Iterator[Comparison]:
                futures = [some.submit(compare, *case) for case in cases]
                return (future.result() for future in futures)

            yield each


def _breaks_a_promise(row: Comparison) -> bool:
    differs = any(row["max_ulps"].get(name) for name in PROMISED)
    return differs or bool(row[FAILED])


def _write(recorded: dict[str, Any], out: Path) -> None:
    from benchmarks.equivalence import figures  # matplotlib takes a second to import

    write_json(out / RESULT, recorded)
    if recorded["rows"]:
        write_atomically(out / "equivalence.md", report(recorded))
        write_atomically(out / "equivalence.png", figures.draw_atlas(recorded))


if __name__ == "__main__":
    run(main)
