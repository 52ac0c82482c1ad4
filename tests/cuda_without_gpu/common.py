"""Optimizers and kernels as the tests of the CUDA target make them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchAdam
from torch_scratch_optim._cuda import CHUNK, CudaKernel
from torch_scratch_optim._kernels import Signature, kernel_for

from ..cases import RICHEST, Case, leaves
from .exact import assert_same, assert_same_state, run_exactly, step_exactly
from .on_cpu import DEVICE, Cuda

HALF = (torch.float16, torch.bfloat16)
PROVED = [Case("Momentum", {"nesterov": True}), Case("Adam"), *RICHEST]


def dense(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves that a kernel takes as they are: so many and so large that several launches and
    chunks are needed."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    made = [
        normal(7, 5),
        normal(),
        normal(0, 4),
        normal(13, 6).t(),
        normal(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        normal(CHUNK + 1),
        *map(normal, range(1, 20)),
        normal(3, 0),
    ]
    return [p.requires_grad_() for p in made]


def give_gradients(*twins: Optimizer, step: int, scale: float = 1.0) -> None:
    """Gradients of some size, laid out as the parameters, equal for all twins."""
    generator = torch.Generator().manual_seed(100 + step)
    for same in zip(*map(leaves, twins), strict=True):
        gradient = torch.randn(same[0].shape, generator=generator, dtype=torch.float64) * scale
        for p in same:
            p.grad = torch.empty_like(p).copy_(gradient)


def names(cuda: Cuda) -> set[str]:
    return {launch.name for launch in cuda.launches}


def signature(
    rule: Callable[..., None],
    dtypes: dict[str, torch.dtype],
    scalars: dict[str, Any],
    rounded: bool = False,
) -> Signature:
    gradient = {
        "gradient.inverse_scale": None,
        "gradient.maximize": False,
        "gradient.l2": None,
    }
    flags = {k: v for k, v in scalars.items() if v is None or isinstance(v, bool)} | gradient
    return Signature(
        rule,
        rounded,
        tuple(flags.items()),
        tuple(k for k in scalars if k not in flags),
        tuple(dtypes),
        tuple((DEVICE, dtype) for dtype in dtypes.values()),
    )


def cuda_kernel(signature: Signature) -> CudaKernel:
    kernel = kernel_for(signature)
    assert isinstance(kernel, CudaKernel)
    return kernel


class Rows:
    """Rows of tensors that are views into one buffer for each column, so that a test sees also what
    is written beside them. All values are drawn, so no two tensors are alike.

    Args:
        sizes: elements of each row.
        dtypes: of each column.
        offsets: by how many elements each column's tensors are off an aligned address.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtypes: dict[str, torch.dtype],
        offsets: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sizes, self.buffers = list(sizes), dict[str, Tensor]()
        self.columns: dict[str, list[Tensor]] = {}
        for name, dtype in dtypes.items():
            offset, starts, end = (offsets or {}).get(name, 0), [], 32
            for size in sizes:
                starts.append(end + offset)
                end += -(-(size + offset + 1) // 32) * 32
            drawn = torch.randn(end, generator=generator, dtype=torch.float64)
            # Wide steps keep numbers of half precision apart.
            buffer = (drawn * 2.0 ** torch.randint(-4, 4, (end,), generator=generator)).to(dtype)
            assert buffer.data_ptr() % 64 == 0
            self.buffers[name] = buffer
            self.columns[name] = self._views(buffer, starts)
        self._starts = {
            name: [int(t.storage_offset()) for t in column] for name, column in self.columns.items()
        }

    def _views(self, buffer: Tensor, starts: list[int]) -> list[Tensor]:
        return [buffer[s : s + size] for s, size in zip(starts, self.sizes, strict=True)]

    def clone(self) -> Rows:
        twin = object.__new__(Rows)
        twin.sizes, twin._starts = self.sizes, self._starts
        twin.buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        twin.columns = {
            name: twin._views(buffer, self._starts[name]) for name, buffer in twin.buffers.items()
        }
        return twin

    def rows(self) -> list[dict[str, Tensor]]:
        return [
            dict(zip(self.columns, row, strict=True))
            for row in zip(*self.columns.values(), strict=True)
        ]

    def call(self, kernel: CudaKernel, numbers: Sequence[float], stride: int = 0) -> bool:
        pointers = [t.data_ptr() for column in self.columns.values() for t in column]
        return kernel(array("q", self.sizes), array("q", pointers), array("d", numbers), stride)


def assert_same_buffers(a: Rows, b: Rows) -> None:
    for name in a.columns:
        assert_same(a.buffers[name], b.buffers[name], f"column {name}")


def sample(p: Any, g: Any, m: Any, *, a: float, b: float) -> None:
    m.mul_(a).add_(g, alpha=b)
    p.sub_(m)


FLOAT = dict.fromkeys("pgm", torch.float32)
MIXED = {"p": torch.float32, "g": torch.bfloat16, "m": torch.float64}
NUMBERS = {"a": 0.9, "b": -0.3}


def check_sample(
    rows: Rows,
    dtypes: dict[str, torch.dtype],
    numbers: list[dict[str, float]] | None = None,
    rounded: bool = False,
) -> None:
    """Move rows by a kernel, and by the formulas; every byte of their buffers has to agree."""
    expected = rows.clone()
    kernel = cuda_kernel(signature(sample, dtypes, NUMBERS, rounded))
    own = numbers or [NUMBERS] * len(rows.sizes)
    for row, scalars in zip(expected.rows(), own, strict=True):
        run_exactly(sample, row, scalars, rounded)
    given = [v for scalars in (own if numbers else [NUMBERS]) for v in scalars.values()]
    assert rows.call(kernel, given, 2 if numbers else 0)
    assert_same_buffers(rows, expected)


def numbers_of(rows: int) -> list[dict[str, float]]:
    return [{"a": 0.5 + i / 7000, "b": 0.1 - i / 9000} for i in range(rows)]


def many_sizes(rows: int) -> list[int]:
    """Small rows, with empty ones at the start, in the middle and at the end."""
    sizes = [(5 * i) % 13 for i in range(1, rows + 1)]
    if rows >= 100:
        for i in (0, 1, rows // 2, rows // 2 + 1, rows - 2, rows - 1):
            sizes[i] = 0
        sizes[rows // 3] = 2 * CHUNK + 1  # rows after it start at another chunk
    return sizes


def copy_gradient(p: Any, g: Any) -> None:
    p.copy_(g)


def assert_no_kernel_can_be_had(match: str) -> None:
    """fused=True says why, and remains at its first step; the default does as foreach."""
    fused = ScratchAdam(dense(), fused=True)
    give_gradients(fused, step=0)
    before = [p.detach().clone() for p in leaves(fused)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=match):
            fused.step()
    assert not any(fused.state.values())
    assert all(map(torch.equal, leaves(fused), before))
    default, foreach = ScratchAdam(dense()), ScratchAdam(dense(), foreach=True)
    for step in range(2):
        give_gradients(default, foreach, step=step)
        default.step()
        foreach.step()
    assert_same_state(default, foreach)


def check_steps(
    ours: Optimizer, exact: Optimizer, *, rounded: bool, steps: int = 2, scale: float = 1.0
) -> None:
    for step in range(steps):
        give_gradients(ours, exact, step=step, scale=scale)
        gradients = [p.grad.clone() for p in leaves(ours) if p.grad is not None]
        ours.step()
        step_exactly(exact, rounded)
        assert_same_state(ours, exact)
        for p, gradient in zip(leaves(ours), gradients, strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, gradient)


def signature_of(case: Case, dtype: torch.dtype, rounded: bool = True) -> Signature:
    """As the engine asks for, at a second step."""
    optimizer = case.ours([torch.ones(3, requires_grad=True)])
    group = optimizer.param_groups[0]
    scalars = optimizer.scalars(2.0, group)
    if not optimizer.counts_steps:
        scalars["first"] = False
    columns = dict.fromkeys(["p", "g", *optimizer.columns(group)], dtype)
    return signature(optimizer.rule, columns, scalars, rounded)
