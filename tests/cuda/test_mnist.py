"""The MNIST benchmark on a GPU, where steps are captured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..cases import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")


def test_mnist_pairs_are_equal_bit_for_bit_although_only_ours_is_captured_whole(
    tmp_path: Path,
) -> None:
    for package in ("tensorboard", "matplotlib", "rich"):
        pytest.importorskip(package, reason=f"the benchmark needs {package}: '.[bench]'")
    from benchmarks.mnist.__main__ import main

    # 72 steps: the warm-up, one in fifty and the last of each epoch, a smaller batch, are eager.
    few = ("--dataset", "synthetic", "--train-size", "3000", "--test-size", "500", "--epochs", "3")
    assert main(["--device", "cuda", *few, "--out", str(tmp_path / "job")]) == 0
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["settings"]["capture"]
    compared = summary["comparisons"]
    assert len(compared) == 10
    assert [
        pair for pair in compared
        if pair["max_abs_loss_difference"] != 0 or not pair["parameters_equal"]
    ] == []  # fmt: skip
    assert isinstance(summary["torchs_default_differs"], list)
