"""By default a kernel is used only if it has proved that it has the bits of the loop."""

from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch_scratch_optim import ScratchAdam, _cuda, _fused
from torch_scratch_optim._cuda import CudaKernel
from torch_scratch_optim._kernels import kernel_for
from torch_scratch_optim._symbols import OPERATIONS

from ..cases import Case
from .common import HALF, PROVED, cuda_kernel, dense, give_gradients, signature_of
from .exact import loop_exactly
from .on_cpu import Cuda

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PROVED, ids=str)
def test_proof_accepts_a_kernel_that_has_the_bits(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    signature = signature_of(case, dtype)
    assert _fused.proved_kernel(signature) is kernel_for(signature)


# An operation, how it is spelt wrongly, and a case whose rule uses it.
WRONG: dict[str, tuple[str, Callable[..., str], str]] = {
    "lerp from one side": ("lerp", lambda x, end, w: f"fma({w}, {end} - {x}, {x})", "Adam"),
    "lerp in two roundings": ("lerp", lambda x, end, w: f"{x} + {w} * ({end} - {x})", "Adam"),
    "addcmul as on a CPU": ("addcmul", OPERATIONS["cpu"]["addcmul"], "RMSProp"),
    "addcmul in two roundings": (
        "addcmul", lambda x, a, b, value="1": f"{x} + {value} * ({a} * {b})", "RMSProp"
    ),
    "addcdiv as on a CPU": ("addcdiv", OPERATIONS["cpu"]["addcdiv"], "AdaGrad"),
    "addcdiv by a reciprocal": (
        "addcdiv", lambda x, a, b, value="1": f"fma({value} * {a}, 1 / {b}, {x})", "AdaGrad"
    ),
    "add in two roundings": (
        "add", lambda x, other, alpha="1": f"{x} + {alpha} * {other}", "Momentum"
    ),
    "sqrt with an error": ("sqrt", lambda x: f"(float)(sqrt({x}) * 1.00000006)", "AdaGrad"),
    "div as on a CPU": ("div_number", OPERATIONS["cpu"]["div_number"], "Adam"),
    "mul with an error": ("mul", lambda x, other: f"fma({x}, {other}, 1e-9f * {x})", "Momentum"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_proof_refuses_a_kernel_that_computes_by_another_formula(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    operation, wrong, name = WRONG[mistake]
    signature = signature_of(Case(name), torch.float32)
    monkeypatch.setitem(OPERATIONS["cuda"], operation, wrong)
    assert _fused.proved_kernel(signature) is None
    assert fresh.launches  # it was compiled and run


@pytest.mark.parametrize("half", HALF, ids=str)
def test_proof_refuses_a_kernel_that_rounds_once(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, half: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    assert _fused.proved_kernel(signature_of(Case("Adam"), half, rounded=False)) is None
    assert cuda.launches


def test_proof_refuses_a_kernel_whose_operations_the_compiler_has_contracted(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    monkeypatch.setattr(_cuda, "FLAGS", ("--std=c++17",))
    assert _fused.proved_kernel(signature_of(Case("Adam"), torch.float32)) is None
    assert fresh.launches


class Flawed:
    """A kernel that flips one bit of one element in one call."""

    def __init__(self, kernel: CudaKernel, call: int, column: int, row: int, element: int) -> None:
        self.kernel, self.written = kernel, kernel.written
        self.calls, self.where = 0, (call, column, row, element)

    def __call__(
        self, sizes: array[int], pointers: array[int], numbers: array[float], stride: int
    ) -> bool:
        moved = self.kernel(sizes, pointers, numbers, stride)
        call, column, row, element = self.where
        if self.calls == call:
            address = pointers[column * len(sizes) + row] + 4 * (element % sizes[row])
            if math.isnan(ctypes.c_float.from_address(address).value):  # all NaN are one
                ctypes.c_float.from_address(address).value = 1.0
            else:
                ctypes.c_int32.from_address(address).value ^= 1
        self.calls += 1
        return moved


@pytest.mark.parametrize("element", [0, 2049, -1])
@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_proof_refuses_one_bit_in_any_column(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, column: int, element: int
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    signature = signature_of(Case("Adam"), torch.float32)
    kernel = cuda_kernel(signature)
    for call in range(3):
        for row in range(2):
            flawed: Any = Flawed(kernel, call, column, row, element)
            assert not _fused._has_the_bits_of_the_loop(flawed, signature)
    sound: Any = Flawed(kernel, 99, column, 0, element)
    assert _fused._has_the_bits_of_the_loop(sound, signature)


def test_proof_is_given_once(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    for _ in range(3):
        optimizer = ScratchAdam(dense())
        give_gradients(optimizer, step=0)
        optimizer.step()
    assert len(cuda.launches) == 3 + 3  # three times for the proof
