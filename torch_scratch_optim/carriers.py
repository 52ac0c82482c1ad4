"""Carriers: what a rule is applied to.

A rule is written once, in the words of :class:`torch.Tensor`, and runs on anything that answers to
them. One tensor does so by itself; :class:`TensorList` lets many tensors move together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor


class TensorList:
    """Many tensors that move as one.

    Every method is the tensor method of that name, run through torch's ``_foreach_`` operation on
    the whole list: ``m.lerp_(g, 0.1)`` is ``torch._foreach_lerp_(m, g, 0.1)``. On a GPU that is
    one kernel for many tensors. On a CPU it is the same kernel, tensor by tensor, called from C++.

    Args:
        tensors: tensors of one device and dtype; their shapes may differ.

    Raises:
        AttributeError: a word for which torch has no ``_foreach_`` operation.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __getattr__(self, word: str) -> Callable[..., TensorList]:
        operation = getattr(torch, f"_foreach_{word}", None)
        if operation is None:
            raise AttributeError(f"no '{word}' for many tensors: torch has no _foreach_{word}")

        def method(self: TensorList, *others: Any, **numbers: Any) -> TensorList:
            result = operation(self.tensors, *map(_unwrap, others), **numbers)
            # In-place operations return nothing; tensor methods return the tensor itself.
            return self if result is None else TensorList(list(result))

        setattr(TensorList, word, method)  # so that the next use finds it at once
        bound: Callable[..., TensorList] = method.__get__(self)
        return bound

    def mul_(self, other: TensorList | float) -> TensorList:
        """Multiply in place, rounding as tensors do.

        On a CPU ``torch._foreach_mul_`` rounds a number to half precision before it multiplies;
        ``Tensor.mul_`` does not.
        """
        if isinstance(other, TensorList) or not is_half_on_cpu(self.tensors[0]):
            torch._foreach_mul_(self.tensors, _unwrap(other))
        else:
            for tensor in self.tensors:
                tensor.mul_(other)
        return self


def is_half_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.bfloat16)


def _unwrap(other: Any) -> Any:
    if isinstance(other, TensorList):
        return other.tensors
    return other.tensor if isinstance(other, Traced) else other


class Traced:
    """A tensor in a trace of torch.compile.

    Numbers are tensors there, of no dimension and in float64, so that none is fixed in the trace
    and ``1 - beta2`` loses nothing. So the words that take numbers are spelled as products.

    Args:
        tensor: a tensor of the trace.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, word: str) -> Callable[..., Traced]:
        return lambda *others: Traced(getattr(self.tensor, word)(*map(_unwrap, others)))

    def add(self, other: Traced, alpha: Tensor) -> Traced:
        return Traced(self.tensor + other.tensor * alpha)

    def add_(self, other: Traced | Tensor, alpha: Tensor | None = None) -> Traced:
        term = _unwrap(other)
        return Traced(self.tensor.add_(term if alpha is None else term * alpha))

    def lerp_(self, end: Traced, weight: Tensor) -> Traced:
        return Traced(self.tensor.add_((end.tensor - self.tensor) * weight))

    def div_(self, number: Tensor) -> Traced:
        # One reciprocal for all: to divide each element takes longer than to fetch it.
        return Traced(self.tensor.mul_(1 / number))

    def addcmul(self, a: Traced, b: Traced, value: Any = 1) -> Traced:
        return Traced(self.tensor + a.tensor * b.tensor * value)

    def addcmul_(self, a: Traced, b: Traced, value: Any = 1) -> Traced:
        return Traced(self.tensor.add_(a.tensor * b.tensor * value))

    def addcdiv_(self, a: Traced, b: Traced, value: Any = 1) -> Traced:
        return Traced(self.tensor.add_(a.tensor / b.tensor * value))


# A rule is generic over its carrier: mypy checks its body once with each of these two.
Carrier = TypeVar("Carrier", Tensor, TensorList)
