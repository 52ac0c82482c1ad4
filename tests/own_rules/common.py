"""Optimizers of a rule of one's own."""

from __future__ import annotations

import inspect
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchOptimizer

from ..cases import same_bits
from .other_rules import TWINS, Adadelta, Adamax, Lion, RAdam, Rprop

Group = dict[str, Any]
Rule = Callable[..., Any]
Make = Callable[..., ScratchOptimizer]

LOOP: Group = {"foreach": False}
FOREACH: Group = {"foreach": True}
KERNEL: Group = {"fused": True}
by_engine = pytest.mark.parametrize(
    "engine", [LOOP, FOREACH, KERNEL], ids=["loop", "foreach", "kernel"]
)
DOUBLE_AND_SINGLE = [torch.float32, torch.float64]
by_precision = pytest.mark.parametrize("dtype", DOUBLE_AND_SINGLE, ids=str)
has_torchs_arithmetic = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the arithmetic of a CPU kernel is that of torch's loop on x86-64 with AVX2 or AVX512",
)

L2: Group = {"weight_decay": 0.1}
UP: Group = {"maximize": True}
DECOUPLED: Group = {"decoupled_weight_decay": True} | L2
OPTIONS: dict[type[ScratchOptimizer], list[Group]] = {
    Adadelta: [{}, {"lr": 0.1}, {"rho": 0.5}, {"eps": 0.1}, L2, UP, L2 | UP],
    Adamax: [{}, {"lr": 0.1}, {"betas": (0.5, 0.7)}, {"eps": 0.1}, L2, UP, L2 | UP],
    RAdam: [
        {},
        {"lr": 0.1},
        {"betas": (0.5, 0.9)},
        {"betas": (0.5, 0.5)},  # never rectified
        {"eps": 0.1},
        L2,
        UP,
        DECOUPLED,
        L2 | UP,
        DECOUPLED | UP,
    ],
    Rprop: [
        {},
        {"lr": 0.1},
        {"etas": (0.7, 1.5)},
        {"step_sizes": (0.009, 0.013)},
        UP,
        {"etas": (0.7, 1.5), "step_sizes": (0.009, 0.013)} | UP,
    ],
    Lion: [{}, {"lr": 0.1}, {"betas": (0.5, 0.7)}, L2, UP, L2 | UP],
}


def in_words(value: object) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def make(kind: type[ScratchOptimizer], params: Any, **options: Any) -> ScratchOptimizer:
    made: Any = kind
    optimizer: ScratchOptimizer = made(params, **options)
    return optimizer


def make_twin(kind: type[ScratchOptimizer], params: Any, **options: Any) -> Optimizer:
    twin: Any = TWINS[kind]
    optimizer: Optimizer = twin(params, **({"foreach": False} | options))
    return optimizer


def of_rule(
    rule: Rule,
    params: list[Tensor],
    *,
    columns: Sequence[str] = (),
    scalars: Callable[[Any, Group], Group] | None = None,
    counts: bool = True,
    **options: Any,
) -> ScratchOptimizer:
    """An optimizer of a rule; its scalars are those options that the rule has as keywords."""
    keywords = [
        p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]

    class Own(ScratchOptimizer):
        counts_steps = counts

        def columns(self, group: Group) -> dict[str, str]:
            return {symbol: f"state_{symbol}" for symbol in columns}

        def scalars(self, t: float, group: Group) -> Group:
            if scalars is not None:
                return scalars(t, group)
            return {name: group[name] for name in keywords if name in group}

    Own.rule = staticmethod(rule)
    return Own(params, options)


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    p = torch.tensor(values, dtype=dtype, requires_grad=True)
    p.grad = torch.linspace(-1, 0.7, p.numel(), dtype=dtype)
    return p


def dense() -> list[Tensor]:
    """Of one kind and laid out alike, so that the engine has less to do for them."""
    return [torch.linspace(-1, 2, n).requires_grad_() for n in (64, 3, 1, 200)]


def same_values(a: Tensor, b: Tensor) -> bool:
    """The same bits, but NaN is NaN: no operation fixes the bits of one that it makes."""
    return torch.equal(a.isnan(), b.isnan()) and same_bits(
        a.masked_fill(a.isnan(), 0.5), b.masked_fill(b.isnan(), 0.5)
    )


def rounded_sqrt(x: Tensor) -> Tensor:
    """The root to the last bit, which torch's own on a CPU is not.

    The C library rounds a root of a double correctly, and that of a float through double, too.
    """
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in x.double().flatten().tolist()]
    return torch.tensor(roots, dtype=torch.float64).view(x.shape).to(x.dtype)


NUMBER = "known only when the kernel"


def descend(p: Tensor, g: Tensor, *, lr: float) -> None:
    p.add_(g, alpha=-lr)
