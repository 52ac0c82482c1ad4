"""Steps on a GPU have the bits of torch's loop there, by every engine that promises them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..cases import (
    DEVICE,
    FLOATS,
    Case,
    assert_equal_state,
    each_case,
    each_richest,
    leaves,
    parameters,
    same_bits,
    train,
)
from ..fused.common import errors, tensors

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")

# Dense, so that kernels take all of them; several chunks, and one that is empty.
SIZES = (0, 1, 3, 7, 64, 1000, 4097, 70_001)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@each_case
def test_default_step_has_the_bits_of_torchs_loop(case: Case, dtype: torch.dtype) -> None:
    def mixed() -> list[Tensor]:
        return [*parameters(dtype), *tensors(*SIZES, dtype=dtype)]

    ours, theirs = case.ours(mixed()), case.torchs(mixed())
    for step in train(ours, theirs, steps=range(10)):
        assert_equal_state(ours, theirs, f"step {step}")


def assert_same_but_for_counts(ours: Optimizer, theirs: Optimizer, context: str) -> None:
    """The same bits; step counts, which are kept on the device, by their values."""
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(theirs), strict=True)):
        assert same_bits(p, q), f"parameter {i} differs after {context}"
        mine, their = ours.state.get(p, {}), theirs.state.get(q, {})
        assert list(mine) == list(their)
        for name, value in their.items():
            if name == "step":
                assert mine[name].is_cuda
                assert mine[name].dtype == torch.float32
                assert mine[name].item() == value.item()
            else:
                assert same_bits(mine[name], value), f"{name} of parameter {i}, {context}"


@pytest.mark.parametrize("option", ["fused", "capturable"])
@each_case
def test_counting_on_the_gpu_has_the_bits_of_torchs_loop_in_float32(
    case: Case, option: str
) -> None:
    ours, theirs = case.ours(tensors(*SIZES), **{option: True}), case.torchs(tensors(*SIZES))
    for step in train(ours, theirs, steps=range(10)):
        assert_same_but_for_counts(ours, theirs, f"step {step}")


@each_case
def test_fused_step_is_torchs_loop_in_float64_but_for_the_devices_power(case: Case) -> None:
    def doubles() -> list[Tensor]:
        return tensors(*SIZES, dtype=torch.float64)

    ours, theirs = case.ours(doubles(), fused=True), case.torchs(doubles())
    for _ in train(ours, theirs, steps=range(10)):
        for p, q in zip(leaves(ours), leaves(theirs), strict=True):
            # β₂ᵗ by the device's pow may differ in the last bit, of which 1 − β₂ᵗ makes more.
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-11)


@each_richest
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fused_step_is_as_accurate_as_torchs_fused_kernels(case: Case, dtype: torch.dtype) -> None:
    mine = errors(lambda p: case.ours(p, fused=True), case, dtype)
    # torch has fused kernels on GPUs for these alone: the loop instead.
    has_fused = case.optimizer not in ("AdaGrad", "RMSProp")
    engine: dict[str, Any] = {"foreach": None, "fused": True} if has_fused else {}
    theirs = errors(lambda p: case.torchs(p, **engine), case, dtype)
    if theirs.isnan().any():  # in float16 RMSprop's ε is zero: any result is better
        theirs.fill_(1)
    # A few units in the last place of a number near 1: luck decides them either way.
    assert (mine <= theirs * 1.1 + 4 * torch.finfo(dtype).eps).all(), (mine, theirs)


@pytest.mark.parametrize("engine", [{}, {"foreach": True}], ids=["default", "foreach"])
@each_richest
def test_parameters_on_cpu_and_gpu_may_share_a_group(case: Case, engine: dict[str, Any]) -> None:
    def both() -> list[Tensor]:
        on_gpu = tensors(3, 100, 4097)
        on_cpu = [p.detach().cpu().requires_grad_() for p in on_gpu]
        return [p for pair in zip(on_gpu, on_cpu, strict=True) for p in pair]

    ours, theirs = case.ours(both(), **engine), case.torchs(both())
    for step in train(ours, theirs, steps=range(4)):
        assert_equal_state(ours, theirs, f"step {step}")
