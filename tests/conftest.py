"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from torch_scratch_optim import fused


@pytest.fixture
def few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes compile in a fraction of the time, and still some stay empty."""
    monkeypatch.setattr(fused, "LANES", 2)
