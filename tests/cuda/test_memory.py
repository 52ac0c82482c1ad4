"""Steps on a GPU take no memory besides the state, and leave none behind."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.common.memory import peak_extra_bytes

from ..cases import DEVICE, Case, each_optimizer

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")


@pytest.mark.parametrize("engine", [{}, {"fused": True}], ids=["default", "fused"])
@each_optimizer
def test_step_by_a_kernel_has_no_temporaries(case: Case, engine: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(8_000_000, device=DEVICE))
    p.grad = torch.ones_like(p)
    ours = case.ours([p], **engine)
    for _ in range(3):
        ours.step()
    peak = peak_extra_bytes(ours.step, p.device)
    assert peak is not None
    assert peak < 2**20


@pytest.mark.parametrize(
    "engine", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str
)
@each_optimizer
def test_steps_leave_no_memory_behind(case: Case, engine: dict[str, Any]) -> None:
    p = nn.Parameter(torch.ones(1000, device=DEVICE))
    p.grad = torch.ones_like(p)
    ours = case.ours([p], **engine)
    for _ in range(3):
        ours.step()
    gc.collect()  # what tests before this one have left
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(p.device)
    for _ in range(100):
        ours.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(p.device) == before
