"""Reading back what a job has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

# tensorboard comes without type hints.
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

TWO = ("--optimizers", "sgd", "adam", "--nets", "relu")


def read(path: Path) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def events(directory: Path) -> EventAccumulator:
    (file,) = directory.glob("events.out.tfevents.*")  # one run, one file
    accumulator = EventAccumulator(str(file))
    accumulator.Reload()
    return accumulator


def run_files(out: Path) -> dict[str, int]:
    """Every finished run and when it was written."""
    return {
        str(path.parent.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("run.json")
    }
