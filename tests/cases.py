"""The one table of cases: optimizers × options × engines × devices, and what is compared in each.

A test takes from it what it needs: ``@each_case``, ``@each_engine``, tensors on `DEVICE`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import torch_scratch_optim as scratch
from benchmarks.common.option_cases import OPTION_CASES
from torch_scratch_optim import ScratchOptimizer, engines

# Name, ours, torch's, and what makes torch's the twin of ours.
PAIRS: dict[str, tuple[type[ScratchOptimizer], type[Optimizer], dict[str, Any]]] = {
    "SGD": (scratch.ScratchSGD, torch.optim.SGD, {}),
    "Momentum": (scratch.ScratchMomentum, torch.optim.SGD, {"momentum": 0.9}),
    "AdaGrad": (scratch.ScratchAdaGrad, torch.optim.Adagrad, {}),
    "RMSProp": (scratch.ScratchRMSProp, torch.optim.RMSprop, {}),
    "Adam": (scratch.ScratchAdam, torch.optim.Adam, {}),
    "AdamW": (scratch.ScratchAdamW, torch.optim.AdamW, {}),
}

# Where our signatures go beyond torch's: the one list of them.
SUPERSETS: dict[str, dict[str, Any]] = {"RMSProp": {"fused": None}} | {
    name: {"capturable": False} for name in ("SGD", "Momentum", "AdaGrad")
}


@dataclass(frozen=True)
class Case:
    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([self.optimizer, *(f"{k}={v}" for k, v in self.options.items())])

    def ours(self, params: Any, **more: Any) -> ScratchOptimizer:
        return PAIRS[self.optimizer][0](params, **(self.options | more))

    def torchs(self, params: Any, **more: Any) -> Optimizer:
        _, twin, defaults = PAIRS[self.optimizer]
        return twin(params, **({"foreach": False} | defaults | self.options | more))


# Optimizers × options.
TABLE = {name: OPTION_CASES[name.lower()] for name in PAIRS}
CASES = [Case(optimizer, options) for optimizer, table in TABLE.items() for options in table]
DEFAULTS = [Case(optimizer) for optimizer in TABLE]
# Of each optimizer the case with the most options.
RICHEST = [Case(optimizer, table[-1]) for optimizer, table in TABLE.items()]
# One without step counts, whose first step is another, and one with, which takes a root.
TWO = [Case("Momentum", {"lr": 0.1, "weight_decay": 0.1}), Case("Adam", {"lr": 0.1})]

LINEAR = ("SGD", "Momentum")
COUNTING = ("AdaGrad", "RMSProp", "Adam", "AdamW")
ADAMS = ("Adam", "AdamW")
# One of each rule: Momentum and AdamW are SGD and Adam with other defaults.
RULES = ("SGD", "AdaGrad", "RMSProp", "Adam")

# Engines: those that have the bits of torch's loop on every device, and the one that has those of
# IEEE arithmetic on a CPU (`tests/fused`) and counts on the device on a GPU (`tests/cuda`).
LOOPS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "default": {},
}
ENGINES: dict[str, dict[str, Any]] = LOOPS | {"fused": {"fused": True}}

# The device of all tensors here: `--device`.
DEVICE = torch.device(os.environ.get("TORCH_SCRATCH_TEST_DEVICE", "cpu"))

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_optimizer = pytest.mark.parametrize("case", DEFAULTS, ids=str)
each_richest = pytest.mark.parametrize("case", RICHEST, ids=str)
each_of_two = pytest.mark.parametrize("case", TWO, ids=str)
loop_and_foreach = pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
each_loop = pytest.mark.parametrize("engine", LOOPS.values(), ids=LOOPS)
each_engine = pytest.mark.parametrize(
    "engine",
    [pytest.param(e, marks=pytest.mark.cpu) if e.get("fused") else e for e in ENGINES.values()],
    ids=ENGINES,
)


# The elements of a block in tests of big tensors, so that big is not that big.
BLOCK = 2**16


@contextmanager
def small_blocks() -> Iterator[None]:
    """Cut tensors into blocks of `BLOCK` elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "CPU_BLOCK", BLOCK)
        yield


def parameters(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> list[Tensor]:
    """Leaves of every kind that a model may hold; two calls give equal ones.

    So many that the engine foreach gathers them: a few it leaves to the loop.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(DEVICE, dtype)

    made = [
        normal(7, 5),
        normal(3),
        normal(),
        normal(0, 4),
        normal(13, 6).t(),
        normal(20, 20)[:, ::2],
        normal(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        normal(1000),
        *map(normal, range(1, 11)),
    ]
    assert len(made) > engines.FEW
    return [p.requires_grad_() for p in made]


def torchs_adagrad_makes_state_late() -> bool:
    """Whether torch's Adagrad, as ours, can step groups that are added later; 2.11 cannot."""
    first, second = (torch.ones(1, requires_grad=True) for _ in range(2))
    adagrad = torch.optim.Adagrad([first])
    adagrad.add_param_group({"params": [second]})
    second.grad = torch.ones(1)
    try:
        adagrad.step()
    except KeyError:
        return False
    return True


def give_gradients(*twins: list[Tensor], step: int) -> None:
    """Give each twin gradients equal to the other's, new tensors at every step."""
    random = torch.Generator().manual_seed(1000 + step)
    for same in zip(*twins, strict=True):
        dtype = torch.complex128 if same[0].is_complex() else torch.float64
        gradient = torch.randn(same[0].shape, generator=random, dtype=dtype)
        for p in same:
            p.grad = gradient.to(p.device, p.dtype, copy=True)


def train(*optimizers: Optimizer, steps: range) -> Iterator[int]:
    """Step optimizers side by side on equal gradients, yielding after each step."""
    for step in steps:
        give_gradients(*map(leaves, optimizers), step=step)
        for optimizer in optimizers:
            optimizer.step()
        yield step


def leaves(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """torch.equal that tells NaN (0/0, where half precision has no ε) and the sign of zero."""

    def bits(t: Tensor) -> Tensor:
        t = torch.view_as_real(t) if t.is_complex() else t
        return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize])

    return a.dtype == b.dtype and torch.equal(bits(a.detach()), bits(b.detach()))


def assert_equal_state(ours: Optimizer, theirs: Optimizer, context: object = "") -> None:
    """Every parameter and every tensor of state has the same bits, and nothing else is kept."""
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(theirs), strict=True)):
        assert same_bits(p, q), f"parameter {i} differs after {context}"
        assert list(ours.state.get(p, {})) == list(theirs.state.get(q, {}))
        for name, value in theirs.state.get(q, {}).items():
            mine = ours.state[p][name]
            assert mine.device == value.device
            assert same_bits(mine, value), f"{name} of parameter {i} differs after {context}"


def assert_close_state(ours: Optimizer, loop: Optimizer) -> None:
    """Equal up to rounding: a kernel rounds roots correctly, and half precision once."""
    for p, q in zip(leaves(ours), leaves(loop), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)
        for name, value in loop.state.get(q, {}).items():
            torch.testing.assert_close(ours.state[p][name], value, equal_nan=True)


def models(dtype: torch.dtype) -> list[Tensor]:
    """Small tensors that are packed, and two that are large enough for lanes of their own."""
    random = torch.Generator().manual_seed(7)
    large = [torch.randn(size, generator=random).to(DEVICE, dtype) for size in (5000, 20_000)]
    return [*parameters(dtype), *(p.requires_grad_() for p in large)]


# Two classes, told by a net so small that a test can train it.
IMAGES = torch.linspace(-1, 1, 32 * 8).view(32, 8).to(DEVICE)
LABELS = (torch.arange(32) % 2).to(DEVICE)


def small_net(*widths: int) -> nn.Sequential:
    """A perceptron with one hidden layer, by default for `IMAGES`; two calls give equal ones."""
    inputs, hidden, outputs = widths or (8, 16, 2)
    made = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, outputs))
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return made.to(DEVICE)


with_torchs_arithmetic = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64")
    or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch's loop has the engine's multiply-adds only on x86-64 with AVX2 or AVX512",
)
