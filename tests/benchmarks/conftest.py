"""What the tests of the benchmarks share: no network, and jobs small enough to take a second."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from benchmarks.common.data import SYNTHETIC_NAME, Digits, load_digits
from benchmarks.mnist import figures
from benchmarks.mnist.__main__ import main
from benchmarks.study import report as study_report
from tests.benchmarks import cuda_graphs
from tests.benchmarks.cuda_graphs import Graph
from tests.benchmarks.study_jobs import run_study

Job = Callable[..., int]
TINY = ("--dataset", "synthetic", "--train-size", "300", "--test-size", "100", "--batch-size", "64")
SMALL_NET = ("--depth", "2", "--width", "16")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise OSError("this test must not use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """For nets this small a second thread only waits, and long where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a small job; leave them out where they do not matter."""
    monkeypatch.setattr(figures, "draw_curves", lambda *arguments: b"curves")
    monkeypatch.setattr(figures, "draw_gradient_flow", lambda *arguments: b"gradient flow")


@pytest.fixture
def job(tmp_path: Path, no_pictures: None) -> Job:
    """Run a small job in the test's own directory."""

    def run(*arguments: str, out: Path = tmp_path / "job") -> int:
        return main([*TINY, *SMALL_NET, "--epochs", "2", "--out", str(out), *arguments])

    return run


@pytest.fixture(scope="session")
def digits() -> Digits:
    found = load_digits("synthetic", Path("nowhere"), torch.device("cpu"), 300, 100)
    assert found.name == SYNTHETIC_NAME
    return found


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that are captured, on a CPU."""
    return cuda_graphs.install(monkeypatch)


def _stand_in(out: Path) -> dict[str, Any]:
    (out / "report.html").write_text("report")
    study = json.loads((out / "study.json").read_text())
    summary = {name: study[name] for name in ("command", "versions", "machine")}
    (out / "summary.json").write_text(json.dumps(summary))
    return {"comparisons": []}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a study has tests of its own."""
    monkeypatch.setattr(study_report, "write", _stand_in)


@pytest.fixture(scope="package")  # so that it is trained with one thread, as all is here
def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_report, "write", _stand_in)
        assert run_study(out) == 0
    return out
