"""The recorded results: made by one command each, with one torch and on one machine.

Those of a GPU, if there are some, come from one machine, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import facts
from benchmarks.common import record
from benchmarks.common.record import GPU, RESULTS, publish, read_json, write_json

FILES = sorted(path.relative_to(RESULTS) for path in RESULTS.rglob("*.json"))


def of_all(part: str, name: str, on_gpu: bool) -> dict[Any, list[str]]:
    """The files by what they say of the machine or the versions."""
    found: dict[Any, list[str]] = {}
    for file in FILES:
        if (file.parts[0] == GPU) is on_gpu:
            found.setdefault(read_json(RESULTS / file)[part][name], []).append(str(file))
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_recorded_file_says_by_which_command_it_was_made(file: Path) -> None:
    command = read_json(RESULTS / file)["command"]
    name = file.parts[file.parts[0] == GPU]
    assert command.startswith(f"python -m benchmarks.{name}")
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
    assert len(of_all(part, name, on_gpu=False)) == 1, of_all(part, name, on_gpu=False)
    assert len(of_all(part, name, on_gpu=True)) <= 1, of_all(part, name, on_gpu=True)


def test_results_of_a_gpu_stand_beside_those_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (record, facts):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    content = read_json(RESULTS / "gradient_release" / "gradient_release.json")
    tables = []
    for device in ("cpu", "An Imaginary GPU"):
        machine = content["machine"] | {"device": device}
        write_json(tmp_path / device / "gradient_release.json", content | {"machine": machine})
        publish("gradient_release", tmp_path / device, ["*.json"])
        tables.append(facts.gradient_release())
    assert "An Imaginary GPU" not in tables[0]
    assert tables[1].startswith(tables[0])
    assert "An Imaginary GPU, " in tables[1].removeprefix(tables[0])
