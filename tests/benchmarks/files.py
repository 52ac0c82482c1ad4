"""Reading back what a job has left, or said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

# tensorboard comes without type hints.
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

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


def refused(run: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said to wrong input."""
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said
