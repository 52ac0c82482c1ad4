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


# Words that take numbers, spelled for numbers that are tensors of no dimension.
_SPELLED_OUT: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y, alpha=1: x + y * alpha,
    "sub": lambda x, y, alpha=1: x - y * alpha,
    # One reciprocal for all elements: a division takes longer than to fetch what is divided.
    "div": lambda x, y: x / y if y.ndim else x * (1 / y),
    "lerp": lambda x, end, weight: x + (end - x) * weight,
    "addcmul": lambda x, a, b, value=1: x + a * b * value,
    "addcdiv": lambda x, a, b, value=1: x + a / b * value,
}


class Traced:
    """A tensor in a trace of torch.compile.

    Numbers are tensors there, of no dimension and in float64: so none of them is fixed in the
    trace, and ``1 - beta2`` loses nothing.

    Args:
        tensor: a tensor of the trace.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, word: str) -> Callable[..., Traced]:
        def method(*others: Any, **numbers: Any) -> Traced:
            spelled_out = _SPELLED_OUT.get(word.removesuffix("_"))
            if spelled_out is None:
                return Traced(getattr(self.tensor, word)(*map(_unwrap, others), **numbers))
            result = spelled_out(self.tensor, *map(_unwrap, others), **numbers)
            return Traced(self.tensor.copy_(result) if word.endswith("_") else result)

        return method


# A rule is generic over its carrier: mypy checks its body once with each of these two.
Carrier = TypeVar("Carrier", Tensor, TensorList)
