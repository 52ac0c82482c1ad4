"""The benchmarks on a GPU, each by the command that its user types, on a small scale."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ..cases import DEVICE

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda"),
    pytest.mark.slow,
]

DIGITS = ("--dataset", "synthetic", "--train-size", "3000", "--test-size", "500")


@pytest.fixture(autouse=True)
def installed() -> None:
    for package in ("tensorboard", "matplotlib", "rich", "scipy", "jinja2", "filelock"):
        pytest.importorskip(package, reason=f"the benchmarks need {package}: '.[bench]'")


def results(name: str, out: Path, file: str, *options: str) -> Any:
    """What a command writes."""
    main = import_module(f"benchmarks.{name}.__main__").main
    assert main(["--device", "cuda", "--out", str(out / name), *options]) == 0
    return json.loads((out / name / file).read_text())


def test_mnist_pairs_are_equal_bit_for_bit_although_only_ours_is_captured_whole(
    tmp_path: Path,
) -> None:
    # 72 steps: the warm-up, one in fifty and the last of each epoch, a smaller batch, are eager.
    summary = results("mnist", tmp_path, "summary.json", *DIGITS, "--epochs", "3")
    assert summary["settings"]["capture"]
    compared = summary["comparisons"]
    assert len(compared) == 10
    assert [
        pair for pair in compared
        if pair["max_abs_loss_difference"] != 0 or not pair["parameters_equal"]
    ] == []  # fmt: skip
    assert isinstance(summary["torchs_default_differs"], list)


def test_study_stacks_trials_and_agrees_with_one_of_single_trials(tmp_path: Path) -> None:
    small = (*DIGITS, "--epochs", "2", "--depth", "2", "--width", "16", "--optimizers", "adam")
    stacked, alone = (
        results("study", tmp_path / stack, "summary.json", *small, "--stack", stack)
        for stack in ("64", "1")
    )
    assert sum(one["stacked"] for one in stacked["comparisons"]) > 0
    assert sum(one["stacked"] for one in alone["comparisons"]) == 0
    mine, theirs = (
        [of["test_accuracy"]["mean"] for one in summary["comparisons"] for of in one["ranking"]]
        for summary in (stacked, alone)
    )
    # Matrices in a stack are multiplied in another order: a few of 500 images may change sides, and
    # of two learning rates that are nearly as good the other may win.
    assert mine == pytest.approx(theirs, abs=0.1)


def test_step_time_knows_device_and_host_apart(tmp_path: Path) -> None:
    cheap = ("--budget", "quick", "--models", "mnist", "--optimizers", "adam")
    content = results("step_time", tmp_path, "step_time.json", *cheap)
    measured = [cell for cell in content["cells"] if cell["status"] == "measured"]
    assert len(measured) == 8  # four engines of ours and four of torch
    for cell in measured:
        assert cell["host_ms"] > 0
        assert cell["launches"] > 0


def test_equivalence_finds_no_mismatch_on_a_gpu(tmp_path: Path) -> None:
    content = results("equivalence", tmp_path, "equivalence.json", "--budget", "quick")
    assert len(content["rows"]) == 48  # optimizers, options and dtypes
    for row in content["rows"]:
        assert row["compared"] > 0
        assert [name for name in row["mismatches"] if name.startswith("ours")] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("seeds", ("--budget", "quick", "--dataset", "synthetic", "--optimizers", "sgd", "adam")),
        ("gradient_release", ("--budget", "quick")),
        ("challenges", ("all", "--budget", "quick", "--dataset", "synthetic")),
    ],
)
def test_other_commands_come_to_their_end(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    main = import_module(f"benchmarks.{name}.__main__").main
    assert main(["--device", "cuda", "--out", str(tmp_path / name), *options]) == 0
