"""Write the tables of the README from recorded results: `python -m benchmarks.readme`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, and comes from the JSON files in
`benchmarks/results/`. With `--check` nothing is written, and a stale table is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import provenance, read_json
from benchmarks.report import EXPLANATION, Pair, markdown_table
from benchmarks.step_report import EXPLANATION as STEP_TIMES
from benchmarks.step_report import ratio_table
from benchmarks.study.report.tables import EXPLANATION as STUDY
from benchmarks.study.report.tables import Table, readme_table
from benchmarks.study.report.tables import published_table as published_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def mnist_table() -> str:
    summary = read_json(RESULTS / "mnist" / "summary.json")
    return "\n".join(
        [
            f"{summary['dataset']}, {provenance(summary, 'python -m benchmarks.mnist')}",
            "",
            markdown_table(recorded_pairs(summary)),
            "",
            EXPLANATION,
        ]
    )


def step_time_table() -> str:
    recorded = read_json(RESULTS / "step_time" / "step_time.json")
    return "\n\n".join(
        [
            provenance(recorded, "python -m benchmarks.step_time"),
            ratio_table(recorded),
            STEP_TIMES,
        ]
    )


def study_table() -> str:
    summary = read_json(RESULTS / "study" / "summary.json")
    seeds = max(len(arena["seeds"]) for arena in summary["arenas"])
    return "\n\n".join(
        [
            f"{summary['dataset']}, {summary['provenance']}",
            readme_table(summary).markdown(),
            f"Learning rates chosen on a validation set, then {seeds} seeds of paired initial "
            f"weights and orders of batches. {STUDY}",
        ]
    )


def published_table() -> str:
    recorded = read_json(RESULTS / "study" / "published.json")
    headings = ["source", "quantity", "published", "ours", "verdict"]
    rows = [
        [case["title"], quantity, theirs, ours, verdict]
        for case in recorded["cases"]
        for quantity, verdict, *_, theirs, ours in published_rows(case).rows
        if verdict != "not run"
    ]
    return "\n\n".join(
        [
            provenance(recorded, "python -m benchmarks.study.published"),
            Table(headings, rows, texts=2).markdown(),
            "Tolerances, seeds and the reasons for what differs are in the study's report.",
        ]
    )


def recorded_pairs(summary: dict[str, Any]) -> list[Pair]:
    runs = {(run["net"], run["optimizer"], run["implementation"]): run for run in summary["runs"]}
    return [
        Pair(
            runs[twin["net"], twin["optimizer"], "scratch"] | {"twin": twin},
            runs[twin["net"], twin["optimizer"], "torch"],
        )
        for twin in summary["twins"]
    ]


TABLES: dict[str, Callable[[], str]] = {
    "mnist": mnist_table,
    "published": published_table,
    "step_time": step_time_table,
    "study": study_table,
}


def filled(text: str) -> str:
    def fill(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    pattern = r"(<!-- table: (\w+) -->).*?(<!-- end -->)"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is stale")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if parser.parse_args().check:
        return int(filled(text) != text)
    readme.write_text(filled(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
