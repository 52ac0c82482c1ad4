"""A rule in IEEE arithmetic, the oracle of the fused engine on a CPU.

Every operation is evaluated here from its definition, with one correct rounding where IEEE 754 has
one: with no code of the package but the rule itself, and with no multiply-add of the machine. A
fused multiply-add, a · b + c rounded once, stands where torch's CPU kernels have one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from torch_scratch_optim import ScratchOptimizer

Expected = dict[Tensor, dict[str, Tensor]]


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c of tensors of one dtype, float32 or float64, rounded once."""
    return _fma_single(a, b, c) if a.dtype == torch.float32 else _elementwise(_fma, a, b, c)


def _fma_single(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    product, c = a.double() * b.double(), c.double()  # 24 · 24 bits fit into 53: it is exact
    total = product + c
    part = total - product  # Knuth's TwoSum: total + error is the sum to the last bit
    error = (product - (total - part)) + (c - part)
    # To round twice could differ from rounding once, but not if the first is "to odd": then 53 bits
    # still say on which side of a tie between two float32 the sum is.
    even = total.contiguous().view(torch.int64) % 2 == 0
    inexact = error.isfinite() & (error != 0)
    odd = torch.nextafter(total, error.sign() * torch.inf)
    return torch.where(even & inexact, odd, total).float()


def _fma(a: float, b: float, c: float) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c  # knows the sign of zero
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


def sqrt(x: Tensor) -> Tensor:
    """The root, rounded correctly, as torch's own on a CPU is not."""
    if x.dtype == torch.float32:
        # The root of 24 bits is never so near to a tie between two float32 that an error in the
        # last of 53 bits could matter.
        return torch.sqrt(x.double()).float()
    return _elementwise(lambda value: math.sqrt(value) if value >= 0 else math.nan, x)


def _elementwise(function: Callable[..., float], *tensors: Tensor) -> Tensor:
    values = zip(*[t.flatten().tolist() for t in tensors], strict=True)
    results = [function(*own) for own in values]
    return torch.tensor(results, dtype=tensors[0].dtype, device="cpu").view(tensors[0].shape)


class Ieee:
    """A tensor whose methods are those that rules use, out of place and in place (with ``_``).

    It computes in float64 if an operand is in float64, and otherwise in float32: in half precision
    a result is rounded only where it is stored.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.to(torch.promote_types(value.dtype, torch.float32))

    def _and(self, *operands: Ieee | float) -> Iterator[Tensor]:
        """The values of this and of operands, in the dtype that they share; a number is rounded."""
        dtype = self.value.dtype
        for operand in operands:
            if isinstance(operand, Ieee):
                dtype = torch.promote_types(dtype, operand.value.dtype)
        shape = self.value.shape
        for operand in (self, *operands):
            if isinstance(operand, Ieee):
                yield operand.value.to(dtype)
            else:
                yield (
                    torch.tensor(operand, dtype=torch.float64, device="cpu").to(dtype).expand(shape)
                )

    def neg(self) -> Ieee:
        return Ieee(-self.value)

    def sqrt(self) -> Ieee:
        return Ieee(sqrt(self.value))

    def copy(self, other: Ieee) -> Ieee:
        return Ieee(other.value.clone())

    def mul(self, other: Ieee | float) -> Ieee:
        x, factor = self._and(other)
        return Ieee(x * factor)

    def div(self, other: Ieee | float) -> Ieee:
        x, divisor = self._and(other)
        return Ieee(x / divisor)

    def add(self, other: Ieee | float, alpha: float = 1) -> Ieee:
        x, b, a = self._and(other, alpha)
        return Ieee(fma(a, b, x))

    def lerp(self, end: Ieee, weight: float) -> Ieee:
        x, b, w = self._and(end, weight)
        near_end = w.abs() >= 0.5
        return Ieee(fma(torch.where(near_end, w - 1, w), b - x, torch.where(near_end, b, x)))

    def addcmul(self, a: Ieee, b: Ieee, value: float = 1) -> Ieee:
        x, first, second, c = self._and(a, b, value)
        return Ieee(fma(c * first, second, x))

    def addcdiv(self, a: Ieee, b: Ieee, value: float = 1) -> Ieee:
        x, numerator, denominator, c = self._and(a, b, value)
        return Ieee(x + c * numerator / denominator)

    def clamp_min(self, least: Ieee | float) -> Ieee:
        return Ieee(torch.maximum(*self._and(least)))

    IN_PLACE: ClassVar = ("copy", "mul", "div", "add", "sqrt", "lerp", "addcmul", "addcdiv",
                          "clamp_min")  # fmt: skip


def _in_place(word: str) -> Callable[..., Ieee]:
    def method(self: Ieee, *operands: Any, **named: Any) -> Ieee:
        result: Ieee = getattr(self, word)(*operands, **named)
        self.value = result.value.to(self.value.dtype)
        return self

    return method


for _word in Ieee.IN_PLACE:
    setattr(Ieee, f"{_word}_", _in_place(_word))


def expected_of(optimizer: ScratchOptimizer, inverse_scale: float | None = None) -> Expected:
    """What the next step is to make of each parameter, "p", and of its state; nothing is changed.

    Args:
        optimizer: its state and options are read as they are.
        inverse_scale: 1 / scale, if the loss was multiplied by a scale.
    """
    results: Expected = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert p not in results, "a parameter that is listed twice has two next steps"
            results[p] = _after_step(optimizer, group, p, inverse_scale)
    return results


def _after_step(
    optimizer: ScratchOptimizer, group: dict[str, Any], p: Tensor, inverse_scale: float | None
) -> dict[str, Tensor]:
    kept = optimizer.state.get(p, {})
    if p.grad is None:
        return {"p": p.detach().clone()} | {name: _copy(value) for name, value in kept.items()}
    columns = optimizer.columns(group)
    names = list(columns.values()) + ["step"] * optimizer.counts_steps
    first = any(kept.get(name) is None for name in names)
    state: dict[str, Tensor] = kept | (optimizer.new_state(p, group) if first else {})
    if optimizer.counts_steps:
        state["step"] = state["step"] + 1
        scalars = optimizer.scalars(state["step"].item(), group)
    else:
        scalars = optimizer.scalars(math.nan, group) | {"first": first}
    scalars = {k: v.item() if isinstance(v, Tensor) else v for k, v in scalars.items()}
    tensors = {"p": p.detach(), "g": p.grad} | {k: state[name] for k, name in columns.items()}
    row = {k: Ieee(_pairs(tensor)) for k, tensor in tensors.items()}
    gradient = Ieee(row["g"].value.clone())
    if inverse_scale is not None:
        gradient = gradient.mul(inverse_scale)
    if group["maximize"]:
        gradient = gradient.neg()
    if group["weight_decay"] and not group.get("decoupled_weight_decay"):
        gradient = gradient.add(row["p"], alpha=float(group["weight_decay"]))
    rule: Callable[..., None] = optimizer.rule
    rule(**(row | {"g": gradient}), **scalars)
    for symbol, name in {"p": "p", **columns}.items():
        state[name] = torch.empty_like(tensors[symbol])
        _pairs(state[name]).copy_(row[symbol].value)  # rounds to the dtype
    return state


def _pairs(tensor: Tensor) -> Tensor:
    """Real numbers; complex ones as pairs of them."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements differ in their bits; one NaN is like another."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a, b = (_pairs(t.detach()).resolve_neg().contiguous() for t in (a, b))
    if a.is_floating_point():
        both = a.isnan() & b.isnan()
        a, b = (
            t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize]) for t in (a, b)
        )
        return int(((a != b) & ~both).sum())
    return int((a != b).sum())


def assert_step(optimizer: ScratchOptimizer, inverse_scale: float | None = None) -> None:
    """Step, and find every bit as the oracle has it.

    Also: what has no gradient is left alone, gradients are left alone whatever else moves, and no
    other state is kept than what the rule needs.
    """
    expected = expected_of(optimizer, inverse_scale)
    gradients = [(p, g, g.clone(), _version(g)) for p in expected if (g := p.grad) is not None]
    optimizer.step()
    for i, (p, own) in enumerate(expected.items()):
        found = {"p": p, **optimizer.state.get(p, {})}
        assert found.keys() == own.keys(), f"state of parameter {i}"
        for name, value in own.items():
            if isinstance(value, Tensor):
                wrong = differing(found[name], value)
                assert not wrong, f"{wrong} numbers of {name} of parameter {i} differ"
            else:
                assert found[name] is value
    for p, g, copy, version in gradients:
        assert p.grad is g
        assert _version(g) == version
        assert not differing(g, copy)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
