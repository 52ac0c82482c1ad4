"""NVRTC compiles every kernel, with no CUDA toolkit on the path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_scratch_optim import _cuda
from torch_scratch_optim._cuda import CudaKernel
from torch_scratch_optim._kernels import kernel_for

from ..cases import FLOATS, RICHEST, Case, each_case
from .common import dense, give_gradients, names
from .on_cpu import Cuda
from .operations import all_operations

pytestmark = pytest.mark.slow


def compile_all(case: Case, dtype: torch.dtype, **options: Any) -> None:
    optimizer = case.ours(dense(dtype), **options)
    for step in range(2):  # the first of momentum is another kernel
        give_gradients(optimizer, step=step)
        optimizer.step()


# In float32 the default's kernels differ only in that they do not count.
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@each_case
def test_nvrtc_compiles_every_rule_without_a_toolkit(
    compiling: Cuda, case: Case, capability: tuple[int, int]
) -> None:
    compiling.capability = capability
    compile_all(case, torch.float32, fused=True)
    assert names(compiling) == {"count", "move_few"}


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nvrtc_compiles_every_dtype(
    compiling: Cuda, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    compiling.version = 12_080  # with large tables, too
    compile_all(RICHEST[-1], dtype, **options)
    assert names(compiling) == ({"count", "move_few"} if options else {"move_few"})


@pytest.mark.parametrize(
    "dtypes",
    [[torch.float64] * 3, [torch.bfloat16, torch.float16, torch.float32]],
    ids=["float64", "mixed"],
)
def test_nvrtc_compiles_all_operations(compiling: Cuda, dtypes: list[torch.dtype]) -> None:
    own = dict(zip("pgs", dtypes, strict=True))
    kernel = kernel_for(all_operations(own, torch.float32, rounded=True))
    assert isinstance(kernel, CudaKernel)


def test_nvrtc_errors_are_shown_with_the_compilers_log(compiling: Cuda) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC could not compile.*nonsense.*undefined"):
        _cuda.compile_cubin("__global__ void f() { nonsense(); }", "sm_90")
    with pytest.raises(RuntimeError, match=r"NVRTC_ERROR_INVALID_OPTION|NVRTC could not compile"):
        _cuda.compile_cubin("__global__ void f() {}", "sm_1")
