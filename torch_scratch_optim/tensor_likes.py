"""Tensor-likes: what a rule is applied to.

A rule is written once, in methods of :class:`torch.Tensor`, and runs on every object that has these
methods: on a tensor, on a :class:`TensorList`, on a :class:`Functional`, and on the symbols of the
fused engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor


class TensorList:
    """A list of tensors with the methods of one.

    Each method calls torch's ``_foreach_`` operation of its name on the whole list:
    ``m.lerp_(g, 0.1)`` is ``torch._foreach_lerp_(m, g, 0.1)``. On a GPU that is one kernel for many
    tensors; on a CPU it is a loop in C++.

    Args:
        tensors: tensors of one device and dtype; their shapes may differ.

    Raises:
        AttributeError: a method for which torch has no ``_foreach_`` operation.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __getattr__(self, name: str) -> Callable[..., TensorList]:
        operation = getattr(torch, f"_foreach_{name}", None)
        if operation is None:
            raise AttributeError(f"no '{name}' for many tensors: torch has no _foreach_{name}")

        def method(self: TensorList, *others: Any, **numbers: Any) -> TensorList:
            result = operation(self.tensors, *map(_unwrap, others), **numbers)
            # In-place operations return nothing; tensor methods return the tensor itself.
            return self if result is None else TensorList(list(result))

        setattr(TensorList, name, method)  # so that the next use finds it at once
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
    return other.tensor if isinstance(other, Functional) else other


def _add(x: Tensor, y: Tensor, alpha: float | Tensor = 1) -> Tensor:
    return x + y * alpha if isinstance(alpha, Tensor) else torch.add(x, y, alpha=alpha)


# Methods that take numbers, spelled so that the numbers may be tensors of no dimension.
_SPELLED_OUT: dict[str, Callable[..., Tensor]] = {
    "add": _add,
    "sub": lambda x, y, alpha=1: _add(x, y, -alpha),
    # One reciprocal for all elements: a division takes longer than to fetch what is divided.
    "div": lambda x, y: x / y if getattr(y, "ndim", 0) else x * (1 / y),
    "lerp": lambda x, end, weight: x + (end - x) * weight,
    "addcmul": lambda x, a, b, value=1: _add(x, a * b, value),
    "addcdiv": lambda x, a, b, value=1: _add(x, a / b, value),
    "copy": lambda x, y: y.clone(),
}


class Functional:
    """A tensor that is never written: an in-place method replaces it by a new tensor.

    Scalars may be tensors, so that torch.compile need not make constants of them, and derivatives
    with respect to them exist.

    Args:
        tensor: the initial value.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Callable[..., Functional]:
        plain = name.removesuffix("_")

        def method(*others: Any, **numbers: Any) -> Functional:
            operation = _SPELLED_OUT.get(plain) or getattr(Tensor, plain)
            result = operation(self.tensor, *map(_unwrap, others), **numbers)
            if plain == name:
                return Functional(result)
            self.tensor = result
            return self

        return method


# A rule is generic over its tensor-like: mypy checks its body once with each of these two.
TensorLike = TypeVar("TensorLike", Tensor, TensorList)
