"""Each operation of a rule, alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from torch_scratch_optim._kernels import Signature
from torch_scratch_optim._symbols import OPERATIONS

from .common import signature

# Operations, each alone: of p, g, s and a number.
CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    **{
        word: lambda p, g, s, a, word=word: getattr(p, word)()  # type: ignore[misc]  # a lambda's default has no type
        for word, spelling in OPERATIONS["cuda"].items()
        if len(inspect.signature(spelling).parameters) == 1
    },
    "copy": lambda p, g, s, a: p.copy(g),
    "add": lambda p, g, s, a: p.add(g),
    "add, alpha": lambda p, g, s, a: p.add(g, alpha=a),
    "add, a number": lambda p, g, s, a: p.add(a),
    "sub": lambda p, g, s, a: p.sub(g),
    "sub, alpha": lambda p, g, s, a: p.sub(g, alpha=a),
    "mul": lambda p, g, s, a: p.mul(g),
    "mul, a number": lambda p, g, s, a: p.mul(a),
    "div": lambda p, g, s, a: p.div(g),
    "div_number": lambda p, g, s, a: p.div(a),
    "div_number, a literal": lambda p, g, s, a: p.div(3.0),
    **{
        f"pow_number, {n}": lambda p, g, s, a, n=n: p.pow(n)  # type: ignore[misc]  # as above
        for n in (2.0, 3.0, 0.5, -1.0, -2.0, -0.5)
    },
    "pow": lambda p, g, s, a: p.abs().pow(g),
    "pow_number": lambda p, g, s, a: p.abs().pow(a),
    "maximum": lambda p, g, s, a: p.maximum(g),
    "minimum": lambda p, g, s, a: p.minimum(g),
    "clamp_min": lambda p, g, s, a: p.clamp_min(g),
    "clamp_max": lambda p, g, s, a: p.clamp_max(g),
    "clamp_min, a number": lambda p, g, s, a: p.clamp_min(a),
    "clamp_max, a number": lambda p, g, s, a: p.clamp_max(a),
    "lerp": lambda p, g, s, a: p.lerp(g, a),
    "lerp, the other side": lambda p, g, s, a: p.lerp(g, -a),
    "addcmul": lambda p, g, s, a: p.addcmul(g, s),
    "addcmul, a value": lambda p, g, s, a: p.addcmul(g, s, value=a),
    "addcdiv": lambda p, g, s, a: p.addcdiv(g, s),
    "addcdiv, a value": lambda p, g, s, a: p.addcdiv(g, s, value=a),
}
# Where libraries of mathematics differ in the last digits.
INEXACT = {"exp", "log", "pow", "pow_number"}
# Which zero is larger is not said.
ZEROS = {"maximum", "minimum", "clamp_min", "clamp_max"}


def _every_call() -> Callable[..., None]:
    columns = [f"r{i}" for i in range(len(CALLS))]
    scope: dict[str, Any] = {"calls": list(CALLS.values())}
    lines = [f"    {c}.copy_(calls[{i}](p, g, s, a))" for i, c in enumerate(columns)]
    text = f"def every_call(p, g, s, {', '.join(columns)}, *, a):\n" + "\n".join(lines)
    exec(text, scope)
    made: Callable[..., None] = scope["every_call"]
    return made


EVERY_CALL = _every_call()


def all_operations(dtypes: dict[str, torch.dtype], result: torch.dtype, rounded: bool) -> Signature:
    columns = dtypes | {f"r{i}": result for i in range(len(CALLS))}
    return signature(EVERY_CALL, columns, {"a": 0.3}, rounded)


SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1.0, -1.0, 3.0, -3.0, 1e-5, math.inf, math.nan]
NUMBERS_FOR_CALLS = [0.3, 0.5, 1.0, -0.7]


@lru_cache(maxsize=1)
def operands(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    pairs = torch.cartesian_prod(special, special)
    drawn = [torch.randn(500, generator=generator, dtype=torch.float64) for _ in range(3)]
    made = {
        "p": torch.cat([pairs[:, 0], drawn[0] * 3]),
        "g": torch.cat([pairs[:, 1], drawn[1] * 3]),
        "s": torch.cat([pairs[:, 1].flip(0), drawn[2] * 3]),
    }
    return {name: t.to(dtype) for name, t in made.items()}
