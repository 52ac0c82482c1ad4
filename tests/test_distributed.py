"""Two processes train together, over gloo on this machine, as one process does alone."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import start_processes

from . import processes

pytestmark = [pytest.mark.slow, pytest.mark.cpu]  # over gloo


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Processes take seconds to start, so one pair of them runs all scenarios."""
    meeting = Path(tmp_path_factory.mktemp("processes"), "meeting")
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        found = manager.dict()
        running = start_processes(
            processes.main,
            args=(f"file://{meeting}", found),
            nprocs=processes.WORLD,
            join=False,
        )
        running.join(timeout=240)
        for process in running.processes:
            process.kill()  # one that waits for the other in vain
        yield dict(found)


@pytest.mark.parametrize("rank", range(processes.WORLD))
@pytest.mark.parametrize("name", processes.SCENARIOS)
def test_two_processes_train_as_one_does(name: str, rank: int, results: Any) -> None:
    assert results.get((name, rank), "it did not end") == "passed"
