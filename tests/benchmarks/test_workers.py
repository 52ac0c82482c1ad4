"""Commands whose work is done by processes, which cannot import what stands in `__main__`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["gradient_release", "--width", "8", "--layers", "1", "--optimizers", "sgd"],
        ["equivalence", "--budget", "quick", "--steps", "1", "--optimizers", "sgd",
         "--dtypes", "float32", "--engine", "loop"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_command_works_in_processes_of_its_own(arguments: list[str], tmp_path: Path) -> None:
    command, *options = arguments
    program = [sys.executable, "-m", f"benchmarks.{command}", *options, "--out", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{command}.json").exists()
