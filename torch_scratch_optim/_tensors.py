"""Checks of tensors before a step.

To check every tensor in Python takes longer than a small step. So tensors are checked once; at
later steps torch's guards find out, in one call of C++, whether anything that matters has changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._options import Group
from ._state import next_counts
from .engines import KIND, PLAIN_TENSORS, Kind, Table, are_mixed, gathers, in_memory_order

if TYPE_CHECKING:
    from .optimizer import ScratchOptimizer


class Checked:
    """What is known of a group's tensors, which are plain, dense and real.

    Attributes:
        sizes: the number of elements of each row's tensors.
        kinds: the device and dtype of each column, if a kernel can take the rows as they are: each
            column has one kind, and each row is dense with one layout. Otherwise None.
        on_gpu: whether those kinds are of a CUDA device.
        steps: the device and dtype of the step counts.
        mixed: whether a row's tensors differ in dtype.
        gathers: whether foreach joins any of them.
        kernels: the kernels that have updated them, by what they were compiled for.
        peek: reads the next step by a kernel.
    """

    def __init__(
        self, columns: dict[str, list[Tensor]], steps: list[Tensor], tensors: list[Tensor]
    ) -> None:
        self.symbols = tuple(columns)
        self.sizes = array("q", [p.numel() for p in columns["p"]])
        negated = any(map(Tensor.is_neg, tensors))  # such tensors have no _foreach_ operations
        kinds = [set(map(KIND, column)) for column in columns.values()]
        self.kinds: tuple[Kind, ...] | None = None
        if (
            columns["p"][0].device.type != "meta"
            and {len(kind) for kind in kinds} == {1}
            and len({device for kind in kinds for device, _ in kind}) == 1
            and not negated
            and (
                all(map(Tensor.is_contiguous, tensors))
                or None not in map(in_memory_order, zip(*columns.values(), strict=True))
            )
        ):
            self.kinds = tuple([kind.pop() for kind in kinds])
        self.on_gpu = self.kinds is not None and self.kinds[0][0].type == "cuda"
        self.steps: set[Kind] = set(map(KIND, steps))
        self.mixed = are_mixed(columns.values())
        self.gathers = gathers(columns["p"], self.sizes) and not negated
        self.kernels: dict[Any, Any] = {}
        self.peek: Callable[[array[int]], float] | None = None
        self._length = len(tensors)
        self._guards = torch._C._dynamo.guards.TensorGuards(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        )

    def holds(self, columns: dict[str, list[Tensor]], tensors: list[Tensor]) -> bool:
        """Whether all of it is true of these tensors, too: they have the same columns, types,
        layouts, devices, dtypes, sizes, strides, conjugate and negative bits, and none occurs
        twice."""
        return (
            self.symbols == tuple(columns)
            and len(self.sizes) == len(columns["p"])
            and len(tensors) == self._length
            and self._guards.check(*tensors)
        )

    def next_counts(self, steps: list[Tensor]) -> list[float]:
        """As :func:`~._state.next_counts`, in one call where a kernel can read them."""
        if self.peek is not None:
            t = self.peek(array("q", map(Tensor.data_ptr, steps)))
            if t == t:
                return [t] * len(steps)
        return next_counts(steps)


def check_tensors(
    optimizer: ScratchOptimizer, group: Group, columns: dict[str, list[Tensor]]
) -> None:
    """Refuse tensors that do not fit their parameter, in torch's words and by name.

    Raises:
        RuntimeError: one has another shape, is on another device, or has a dtype that the
            parameter's cannot be converted to.
    """
    what = {"p": "parameter", "g": "gradient"} | optimizer.columns(group)
    for symbol, column in columns.items():
        for p, t in zip(columns["p"], column, strict=True):
            if p.device != t.device:
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, {p.device} and {t.device}! "
                    f"{name_of(optimizer, p, group)} is on the first, its {what[symbol]} on the "
                    "second"
                )
            if p.dtype != t.dtype and not (
                torch.can_cast(t.dtype, p.dtype)
                and (symbol == "g" or torch.can_cast(p.dtype, t.dtype))
            ):
                raise RuntimeError(
                    f"result type {p.dtype} can't be cast to the desired output type {t.dtype}: "
                    f"{name_of(optimizer, p, group)} has the first, its {what[symbol]} the second"
                )
            if p.shape != t.shape:
                sizes = list(zip_longest(reversed(p.shape), reversed(t.shape), fillvalue=1))
                at = next((i for i, (a, b) in enumerate(sizes) if a != b), len(sizes) - 1)
                raise RuntimeError(
                    f"The size of tensor a ({sizes[at][0]}) must match the size of tensor b "
                    f"({sizes[at][1]}) at non-singleton dimension {len(sizes) - 1 - at}: "
                    f"{name_of(optimizer, p, group)} has the shape {list(p.shape)}, "
                    f"its {what[symbol]} {list(t.shape)}"
                )


def name_of(optimizer: ScratchOptimizer, p: Tensor, group: Group) -> str:
    """A parameter's name, or its group and index."""
    index = next(i for i, q in enumerate(group["params"]) if q is p)
    if "param_names" in group:
        return f"parameter {group['param_names'][index]!r}"
    number = next(i for i, g in enumerate(optimizer.param_groups) if g is group)
    return f"parameter {index} of group {number}"


def check(
    columns: dict[str, list[Tensor]], steps: list[Tensor], tensors: list[Tensor]
) -> Checked | None:
    """What is known of tensors that :func:`check_tensors` accepts; None if some are not plain."""
    for t in tensors:
        if type(t) not in PLAIN_TENSORS or t.layout is not torch.strided or t.is_complex():
            return None
    return Checked(columns, steps, tensors)


def overlap(pieces: list[tuple[int, int, bool]]) -> bool:
    """Whether memory that is written overlaps other memory, or is a null pointer.

    Args:
        pieces: the begin and end of each, and whether it is written.
    """
    any_end = written_end = 1  # of what came before; a null pointer lies before it
    for begin, end, written in sorted(pieces):
        if begin < (any_end if written else written_end):
            return True
        any_end = max(any_end, end)
        written_end = max(written_end, end) if written else written_end
    return False


def local_and_real(
    optimizer: ScratchOptimizer, group: Group, table: Table, new: dict[Tensor, Group]
) -> Table:
    """Tensors of this process: its shards of DTensors, and complex numbers as pairs."""
    columns = table.columns
    params = columns["p"]
    if not PLAIN_TENSORS.issuperset(map(type, params)):
        for symbol, name in optimizer.columns(group).items():
            columns[symbol] = list(map(_redistributed_like, columns[symbol], params))
            for p, t in zip(params, columns[symbol], strict=True):
                (new.get(p) or optimizer.state[p])[name] = t
        columns = {
            symbol: [_local(_redistributed_like(t, p)) for t, p in zip(c, params, strict=True)]
            for symbol, c in columns.items()
        }
    if (optimizer.splits_complex or group.get("fused")) and any(map(torch.is_complex, params)):
        columns["g"] = [g.resolve_conj() for g in columns["g"]]
        columns = {symbol: list(map(_as_real, column)) for symbol, column in columns.items()}
    return table if columns is table.columns else Table(columns)


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def _redistributed_like(tensor: Any, p: Any) -> Any:
    """A tensor sharded as the parameter is: a copy, unless it is so already.

    A gradient may still be a summand in each process, and so may state that torch's SGD copied.
    """
    if getattr(p, "placements", None) == getattr(tensor, "placements", None):
        return tensor
    return tensor.redistribute(placements=p.placements)
