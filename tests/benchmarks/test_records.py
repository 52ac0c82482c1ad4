"""The recorded results: made by one command each, with one torch and on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.record import RESULTS, read_json

FILES = sorted(path.relative_to(RESULTS) for path in RESULTS.rglob("*.json"))


def of_all(part: str, name: str) -> dict[Any, list[str]]:
    """The files by what they say of the machine or the versions."""
    found: dict[Any, list[str]] = {}
    for file in FILES:
        found.setdefault(read_json(RESULTS / file)[part][name], []).append(str(file))
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_recorded_file_says_by_which_command_it_was_made(file: Path) -> None:
    command = read_json(RESULTS / file)["command"]
    assert command.startswith(f"python -m benchmarks.{file.parts[0]}")
    assert not {"--out", "--data-dir", "--record", "--resume"} & set(command.split())
    assert "--budget quick" not in command


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("versions", "torch"),
        ("versions", "python"),
        ("machine", "system"),
        ("machine", "processor"),
        ("machine", "cores"),
        ("machine", "device"),
    ],
)
def test_all_recorded_files_come_from_one_torch_and_one_machine(part: str, name: str) -> None:
    found = of_all(part, name)
    assert len(found) == 1, found
