"""torchrun trains the nets of benchmarks.mnist in several processes, as one process trains them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import processes
from benchmarks.common.record import read_json
from benchmarks.mnist.__main__ import main

pytestmark = pytest.mark.slow

JOB = [
    "-m",
    "benchmarks.mnist",
    "--dataset",
    "synthetic",
    "--train-size",
    "300",
    "--test-size",
    "100",
]
JOB += ["--epochs", "1", "--optimizers", "momentum", "adam", "--nets", "relu", "--depth", "2"]


def trained(out: Path, *launcher: str) -> tuple[dict[str, Any], str]:
    result = subprocess.run(
        [sys.executable, *launcher, *JOB, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return read_json(out / "summary.json"), result.stdout


def test_a_batch_is_shared_out_evenly_or_seen_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts: dict[int, list[list[int]]] = {}
    for images in (6, 7, 1):
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            parts.setdefault(images, []).append(
                processes.local_batch(torch.arange(images)).tolist()
            )
    assert parts == {6: [[0, 1], [2, 3], [4, 5]], 7: [list(range(7))] * 3, 1: [[0]] * 3}


@pytest.mark.parametrize(
    ("gpus", "backend", "current"),
    [(0, "gloo", []), (2, "cpu:gloo,cuda:nccl", [1]), (4, "cpu:gloo,cuda:nccl", [3])],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    gpus: int, backend: str, current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last process of two machines with four processes each.
    for name, value in {"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    devices: list[int] = []
    groups: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", groups.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", groups.clear)
    with processes.joined():
        assert (groups, devices) == ([backend], current)
    assert not groups, "it was left"


@pytest.mark.parametrize(("here", "lacks"), [(None, False), ("2", False), ("3", True)])
def test_processes_do_not_share_a_gpu(
    here: str | None, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert processes.lacks_gpus() == lacks


def test_a_job_on_a_gpu_is_refused_where_processes_lack_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(processes, "lacks_gpus", lambda: True)
    with pytest.raises(SystemExit):
        main([*JOB[2:], "--device", "cuda", "--out", str(tmp_path / "job")])
    assert "each process needs a GPU" in capsys.readouterr().err


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together, printed = trained(tmp_path / "together", *launcher)
    alone, _ = trained(tmp_path / "alone")
    assert printed.count("Results go to") == 1, "one process speaks for all"
    assert together["machine"]["processes"] == 2
    assert alone["machine"]["processes"] == 1
    assert [run["optimizer"] for run in together["runs"]] == [
        run["optimizer"] for run in alone["runs"]
    ]
    for a, b in zip(together["runs"], alone["runs"], strict=True):
        # A mean of means is rounded otherwise than the mean, and Adam magnifies small gradients.
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
    assert all(pair["parameters_equal"] for pair in together["comparisons"])
