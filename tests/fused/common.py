"""What the tests of the fused engine on a CPU share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchOptimizer

from ..cases import DEVICE, LINEAR, RICHEST, Case, leaves, models
from ..ieee import assert_step

# Around the widths of vectors; one that two threads share.
SIZES = (0, 1, 3, 7, 8, 63, 64, 65, 4097, 65_601)
FEW = SIZES[:-2]


def values(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Distinct values of many magnitudes and both signs."""
    random = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    magnitudes = 10 ** (torch.rand(shape, generator=random, dtype=torch.float64) * 6 - 4)
    return (torch.randn(shape, generator=random, dtype=wide) * magnitudes).to(DEVICE, dtype)


def tensors(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [values(n, seed=n + i, dtype=dtype).requires_grad_() for i, n in enumerate(sizes)]


def give(optimizer: Optimizer, step: int) -> None:
    """New gradients, others for each parameter and step."""
    for i, p in enumerate(leaves(optimizer)):
        p.grad = values(*p.shape, seed=1000 * step + i, dtype=p.dtype)


def steps(optimizer: ScratchOptimizer, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        give(optimizer, step)
        assert_step(optimizer)


def state_of(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """The state without the step count."""
    return {name: value for name, value in optimizer.state[p].items() if name != "step"}


KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)

Layout = Callable[[Tensor], Tensor]
# Each is given a dense tensor of shape (8, 6, 10, 4), and gives one of that shape and those values.
LAYOUTS: dict[str, Layout] = {
    "dense": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "with an offset": lambda x: torch.cat([x, x])[8:],
    "negative bit": lambda x: torch._neg_view(-x),
    "negative bit, transposed": lambda x: torch._neg_view(LAYOUTS["transposed"](-x)),
}

COUNTED = [c for c in RICHEST if c.optimizer not in LINEAR]
each_counted = pytest.mark.parametrize("case", COUNTED, ids=str)


def errors(make: Callable[[list[Tensor]], Optimizer], case: Case, dtype: torch.dtype) -> Tensor:
    """The largest and the root mean square error after 20 steps, against a run in float64."""
    tested = make(models(dtype))
    exact = case.torchs([p.detach().double().requires_grad_() for p in models(dtype)])
    random = torch.Generator().manual_seed(3)
    for _ in range(20):
        for p, q in zip(leaves(tested), leaves(exact), strict=True):
            p.grad = torch.randn(p.shape, generator=random).to(DEVICE, dtype)
            q.grad = p.grad.double()
        tested.step()
        exact.step()
    pairs = zip(leaves(tested), leaves(exact), strict=True)
    difference = torch.cat([(p.double() - q).flatten() for p, q in pairs]).detach()
    return torch.stack([difference.abs().max(), difference.square().mean().sqrt()])
