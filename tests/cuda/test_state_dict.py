"""Checkpoints go from a CPU to a GPU and back in the middle of a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..cases import (
    DEVICE,
    Case,
    assert_equal_state,
    each_case,
    each_optimizer,
    leaves,
    parameters,
    train,
)

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")

CPU = torch.device("cpu")
Make = Callable[..., Optimizer]


def moved(running: Optimizer, make: Make, device: torch.device, **engine: Any) -> Optimizer:
    """An optimizer on another device that goes on from a checkpoint in a file."""
    file = io.BytesIO()
    torch.save(running.state_dict(), file)
    file.seek(0)
    params = [p.detach().to(device, copy=True).requires_grad_() for p in leaves(running)]
    following = make(params, lr=123.0, **engine)
    following.load_state_dict(torch.load(file, map_location=CPU, weights_only=True))
    for group in following.param_groups:
        group.update({"foreach": None, "fused": None} | engine)
    return following


def on(device: torch.device) -> list[Tensor]:
    # In double precision, in which devices differ little.
    return [p.detach().to(device).requires_grad_() for p in parameters(torch.float64)]


@pytest.mark.parametrize("engine", [{}, {"foreach": True}, {"fused": True}], ids=str)
@each_optimizer
def test_state_dict_takes_a_run_from_cpu_to_gpu_and_back(
    case: Case, engine: dict[str, Any]
) -> None:
    undisturbed, running = case.torchs(on(CPU)), case.ours(on(CPU))
    for step in train(undisturbed, running, steps=range(3)):
        assert_equal_state(running, undisturbed, f"step {step}")
    on_gpu = moved(running, case.ours, DEVICE, **engine)
    for _ in train(undisturbed, on_gpu, steps=range(3, 6)):
        for p in leaves(on_gpu):
            assert all(t.is_cuda for name, t in on_gpu.state[p].items() if name != "step")
    back = moved(on_gpu, case.ours, CPU)
    for _ in train(undisturbed, back, steps=range(6, 9)):
        assert all(t.is_cpu for state in back.state.values() for t in state.values())
    for p, q in zip(leaves(back), leaves(undisturbed), strict=True):
        # Devices round otherwise.
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("to", ["torch", "ours"])
@each_case
def test_state_dict_of_a_cpu_goes_on_with_the_other_library_on_a_gpu(case: Case, to: str) -> None:
    first, second = (case.ours, case.torchs) if to == "torch" else (case.torchs, case.ours)
    running = first([p.detach().cpu().requires_grad_() for p in parameters()])
    for _ in train(running, steps=range(3)):
        pass
    torchs: dict[str, Any] = {"foreach": False}
    pair = [
        moved(running, make, DEVICE, **(torchs if make == case.torchs else {}))
        for make in (first, second)
    ]
    for step in train(*pair, steps=range(3, 8)):
        assert_equal_state(pair[0], pair[1], f"step {step}")
