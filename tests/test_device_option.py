"""`pytest --device`: where the tensors of the tests are, and which tests are left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# A module of tests in which all is about CPUs, and a test that is about any device.
CPU_ONLY = "tests/test_capturable.py"
ANY = "tests/test_decay_groups.py::test_decay_groups_hold_every_trainable_parameter_once"


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-rs", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_device_that_is_not_there_is_one_clear_error() -> None:
    done = run_pytest("--device", "nonsense", ANY)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, done.stderr.splitlines())
    assert line.startswith("ERROR: --device nonsense: ")


def test_device_skips_what_is_about_cpus() -> None:
    done = run_pytest("--device", "meta", CPU_ONLY, ANY)
    assert done.returncode == 0, done.stdout
    assert "about CPUs alone, and so not for --device meta" in done.stdout
    assert "1 passed" in done.stdout


def test_device_is_where_parameters_are() -> None:
    program = (
        "from tests.cases import *; print({p.device.type for p in parameters()}, IMAGES.device)"
    )
    done = run_with_device("meta", program)
    assert done.stdout == "{'meta'} meta\n", done.stderr


def run_with_device(device: str, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_SCRATCH_TEST_DEVICE": device}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
