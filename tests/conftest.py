"""What tests of several rooms share."""

from __future__ import annotations

import os

import pytest

from torch_scratch_optim import fused


def pytest_configure() -> None:
    # For the workers, who share the cores: a thread with nothing to do is to let another's run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes compile in a fraction of the time, and still some stay empty."""
    monkeypatch.setattr(fused, "LANES", 2)
