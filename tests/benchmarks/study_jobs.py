"""Small studies for the tests: two optimizers, three learning rates, no worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.study.__main__ import main
from tests.benchmarks.files import read

TINY_STUDY = (
    "--dataset", "synthetic", "--train-size", "240", "--test-size", "60", "--batch-size", "50",
    "--depth", "2", "--width", "8", "--epochs", "6", "--seeds", "2", "--nets", "relu",
    "--optimizers", "sgd", "adam", "--workers", "0",
)  # fmt: skip


def run_study(out: Path, *arguments: str) -> int:
    """Begin a study, or go on with one."""
    resume = ["--resume"] if (out / "study.json").exists() else []
    return main([*TINY_STUDY, "--out", str(out), *resume, *arguments])


def trial_files(out: Path) -> dict[str, int]:
    """The files of trials, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}


def contents(out: Path) -> list[dict[str, Any]]:
    return [read(path) for path in sorted((out / "trials").glob("*.json"))]
