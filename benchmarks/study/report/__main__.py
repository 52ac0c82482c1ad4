"""Make the report of a study again: `python -m benchmarks.study.report OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import claims
from benchmarks.common.command import CannotRun, Job, Parser, conduct, run, say
from benchmarks.study.files import STUDY_FILE
from benchmarks.study.report import write


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.study.report", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the results folder of a study")
    return conduct(parser, arguments, _write)


def _write(given: argparse.Namespace, job: Job) -> int:
    out: Path = given.out
    if not (out / STUDY_FILE).exists():
        raise CannotRun(f"{out} holds no study: there is no {STUDY_FILE}")
    with claims.shared(out):  # a study may be at work there: its trials so far make a report, too
        write(out)
    say(job.console, str(out / "report.html"))
    return 0


if __name__ == "__main__":
    run(main)
