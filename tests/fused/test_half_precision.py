"""Every number of half precision, as a kernel loads and stores it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import ScratchOptimizer


class Storing(ScratchOptimizer):
    """Stores a gradient in half precision."""

    counts_steps = False

    def __init__(self, params: list[Tensor], dtype: torch.dtype, fused: bool = True) -> None:
        self.dtype = dtype
        super().__init__(params, {"fused": fused})

    def columns(self, group: dict[str, Any]) -> dict[str, str]:
        return {"h": "half"}

    def scalars(self, t: float, group: dict[str, Any]) -> dict[str, Any]:
        return {}

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"half": torch.zeros_like(p, dtype=self.dtype)}

    @staticmethod
    def rule(p: Any, g: Any, h: Any, *, first: bool) -> None:
        h.copy_(g)


class Loading(Storing):
    """Makes parameters of it again."""

    @staticmethod
    def rule(p: Any, g: Any, h: Any, *, first: bool) -> None:
        p.copy_(h)


@pytest.fixture(params=[False, True], ids=["denormal numbers", "flushed"])
def flush_denormal(request: pytest.FixtureRequest) -> Iterator[None]:
    if not torch.set_flush_denormal(request.param):
        pytest.skip("the CPU cannot flush denormal numbers")
    yield
    torch.set_flush_denormal(False)


halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def assert_same_numbers(ours: Tensor, theirs: Tensor) -> None:
    """The same bits, but for those that tell one NaN from another."""
    integers = {2: torch.int16, 4: torch.int32}[ours.itemsize]
    mask = ours.view(integers) != theirs.view(integers)
    # Integers again: a comparison of numbers might itself flush them.
    differing = ours[mask].isnan() & theirs[mask].isnan()
    assert ours.dtype == theirs.dtype
    assert differing.all(), (ours[mask][~differing][:5], theirs[mask][~differing][:5])


def pieces(values: Tensor) -> list[Tensor]:
    """All of it, and parts too short for vector instructions."""
    return [values, *values[: 7 * 50].view(50, 7).unbind(), *values[-5:].split(1)]


@halves
@pytest.mark.usefixtures("flush_denormal")
def test_kernels_load_every_number_of_half_precision(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    assert bits.unique().numel() == 2**16
    held = [h.clone() for h in pieces(bits.roll(100).view(dtype))]
    params = [torch.full(h.shape, 7.0, requires_grad=True) for h in held]
    optimizer = Loading(params, dtype)
    for p, h in zip(params, held, strict=True):
        p.grad = torch.ones_like(p)
        optimizer.state[p] = {"half": h}
    optimizer.step()
    for p, h in zip(params, held, strict=True):
        assert_same_numbers(p.detach(), h.float())


def float_patterns() -> Tensor:
    """Every sign and exponent with every 7 bits after it, and ends near all ties."""
    high = torch.arange(2**16).unsqueeze(1) * 2**16
    low = torch.arange(16).unsqueeze(1) * 2**12 + torch.tensor([-1, 0, 1])
    patterns = (high + low.clamp(0, 2**16 - 1).unique()).flatten() - 2**31
    values: Tensor = patterns.to(torch.int32).view(torch.float32)
    return values


@halves
@pytest.mark.usefixtures("flush_denormal")
def test_kernels_store_numbers_in_half_precision_as_torch_does(dtype: torch.dtype) -> None:
    values = float_patterns()
    assert values.numel() > 3_000_000
    grads = pieces(values.roll(10_000_000 % values.numel()))
    params = [torch.zeros_like(g, requires_grad=True) for g in grads]
    optimizer = Storing(params, dtype)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    for p, g in zip(params, grads, strict=True):
        assert_same_numbers(optimizer.state[p]["half"], g.to(dtype))
