"""What can go wrong with CUDA, and what is said of it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from torch_scratch_optim import ScratchAdam, ScratchSGD
from torch_scratch_optim._symbols import OPERATIONS

from ..cases import leaves
from .common import (
    FLOAT,
    NUMBERS,
    Rows,
    assert_no_kernel_can_be_had,
    cuda_kernel,
    dense,
    give_gradients,
    sample,
    signature,
)
from .on_cpu import Cuda, CUresult, NvrtcResult, forget

ERRORS = [
    ("cuDriverGetVersion", CUresult.CUDA_ERROR_INVALID_VALUE),
    ("cuModuleLoadData", CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU),
    ("cuModuleGetFunction", CUresult.CUDA_ERROR_OUT_OF_MEMORY),
    ("nvrtcVersion", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcCreateProgram", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcGetCUBINSize", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcGetCUBIN", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
]


@pytest.mark.parametrize(("function", "error"), ERRORS, ids=str)
def test_errors_of_cuda_are_named(fresh: Cuda, function: str, error: Any) -> None:
    fresh.failing[function] = error
    assert_no_kernel_can_be_had(error.name)
    assert not fresh.launches
    fresh.failing.clear()
    forget()
    optimizer = ScratchAdam(dense(), fused=True)
    give_gradients(optimizer, step=0)
    optimizer.step()
    assert fresh.launches


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
def test_errors_of_a_launch_are_raised(cuda: Cuda, options: dict[str, Any]) -> None:
    optimizer = ScratchSGD(dense(), **options)
    give_gradients(optimizer, step=0)
    optimizer.step()
    before = [p.detach().clone() for p in leaves(optimizer)]
    cuda.failing["cuLaunchKernel"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        optimizer.step()
    assert all(map(torch.equal, leaves(optimizer), before))


def no_library() -> Any:
    raise RuntimeError('Failed to dlopen "libcuda.so.1"')  # as cuda.bindings does


@pytest.mark.parametrize("function", ["cuDriverGetVersion", "nvrtcVersion"])
def test_errors_where_a_library_is_missing(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(fresh, function, no_library)
    assert_no_kernel_can_be_had("libcuda")


@pytest.mark.parametrize("module", ["driver", "nvrtc"])
def test_errors_where_nvidias_package_is_missing(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, f"cuda.bindings.{module}", None)
    assert_no_kernel_can_be_had("pip install cuda-bindings")


def test_errors_on_devices_that_are_too_old(fresh: Cuda) -> None:
    fresh.capability = (6, 1)
    assert_no_kernel_can_be_had(r"compute capability 7\.0, but cuda:0 has 6\.1")
    assert not fresh.programs


def test_errors_of_the_compiler_are_shown(fresh: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS["cuda"], "lerp", lambda x, end, weight: f"nonsense({x})")
    assert_no_kernel_can_be_had("(?s)NVRTC could not compile.*nonsense")


def test_device_of_capability_7_0_is_served(cuda: Cuda) -> None:
    cuda.capability = (7, 0)
    rows = Rows([5], FLOAT)
    assert rows.call(cuda_kernel(signature(sample, FLOAT, NUMBERS)), [0.9, 0.1])
