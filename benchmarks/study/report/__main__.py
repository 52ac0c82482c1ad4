"""Make the report of a study again: `python -m benchmarks.study.report OUT`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import CannotRun, Parser, check_writable
from benchmarks.study.report.writing import PAGE, write


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.study.report", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the results folder of a study")
    out = parser.parse_args(arguments).out
    try:
        check_writable(out)
        write(out)
    except (CannotRun, OSError) as problem:
        parser.error(str(problem))
    print(out / PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
