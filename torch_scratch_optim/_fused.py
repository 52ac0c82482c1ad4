"""The fused engine: one call of a kernel that the rule has written moves a whole group, in place.

A kernel checks nothing, so this engine does. What a kernel cannot take (subclasses, memory that
overlaps, numbers that overflow) is left to the loop, for the same result or torch's own error.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ._checks import KIND, Checked, Kind, count
from ._kernels import Kernel, Signature, kernel_for
from .engines import ORDINARY, Part, Table, descending, in_memory_order, loop, numbers

_ADDRESS = Tensor.data_ptr


def plan(
    rule: Callable[..., None],
    parts: list[Part],
    gradient: dict[str, Any],
    checked: Checked | None,
    steps: list[Tensor],
    rounded: bool = False,
) -> tuple[Callable[[], None], list[Tensor]]:
    """Check tensors, compile what must be compiled, and return what moves them.

    Args:
        rule: the rule.
        parts: what it works on and its scalars; each scalar is a number, None or a bool.
        gradient: how its gradient is made, see :func:`~.engines.descending`.
        checked: what is known of the tensors, if they are ordinary.
        steps: the step counts of all rows.
        rounded: in half precision, round after each operation, as torch's loop does.

    Returns:
        What moves the rows, and the step counts that it does not count.

    Raises:
        RuntimeError: there is no kernel for such tensors, or none can be compiled.
    """
    # Parts differ in numbers, which the rows of one call may, and in flags, which they may not.
    calls: dict[tuple[Any, ...], list[tuple[list[float], Part]]] = {}
    for scalars, table in parts:
        flags, names, numbers = [], [], []
        for name, value in chain(scalars.items(), gradient.items()):
            if value is None or value is True or value is False:
                flags.append((name, value))
            else:
                names.append(name)
                numbers.append(value)
        if checked is not None and checked.kinds and len(parts) == 1:
            key = (rule, rounded, tuple(flags), tuple(names))
            return _plan_checked(key, table, numbers, scalars, gradient, checked, steps)
        for kinds, rows in by_kind(table):
            key = (rule, rounded, tuple(flags), tuple(names), tuple(rows.columns), kinds)
            calls.setdefault(key, []).append((numbers, (scalars, rows)))
    moves = [_plan(Signature(*key), alike, gradient) for key, alike in calls.items()]
    return partial(_run_all, moves), steps


def _plan_checked(
    key: tuple[Any, ...],
    table: Table,
    numbers: list[float],
    scalars: dict[str, Any],
    gradient: dict[str, Any],
    checked: Checked,
    steps: list[Tensor],
) -> tuple[Callable[[], None], list[Tensor]]:
    """As most models have it: all rows are of one kind, dense, and take the same step."""
    by_loop = partial(_by_loop, key[0], [(scalars, table)], gradient)
    if torch._C._len_torch_dispatch_stack():  # somebody wants to see operations
        return by_loop, steps
    kernel = checked.kernels.get(key)
    if kernel is None:
        assert checked.kinds is not None
        signature = Signature(*key, tuple(table.columns), checked.kinds)
        kernel = checked.kernels[key] = kernel_for(signature)
        checked.peek = kernel.peek if checked.counted else None
    move = _Move(kernel, table, numbers, by_loop)
    if checked.counted:
        move.steps = steps
        return move, []
    return move, steps


def _run_all(moves: list[Callable[[], None]]) -> None:
    for move in moves:
        move()


def by_kind(table: Table) -> Iterable[tuple[tuple[Kind, ...], Table]]:
    """Rows whose tensors, column by column, have the same device and dtype."""
    kinds = [list(map(KIND, column)) for column in table.columns.values()]
    if all([kind.count(kind[0]) == len(kind) for kind in kinds]):  # as in most models
        return [(tuple([kind[0] for kind in kinds]), table)]
    rows = defaultdict(list)
    for i, row in enumerate(zip(*kinds, strict=True)):
        rows[row].append(i)
    return [(kind, table.select(indices)) for kind, indices in rows.items()]


def _plan(
    signature: Signature, alike: list[tuple[list[float], Part]], gradient: dict[str, Any]
) -> Callable[[], None]:
    """Rows of one kind: what moves them."""
    by_loop = partial(_by_loop, signature.rule, [part for _, part in alike], gradient)
    columns = {
        c: list(chain.from_iterable([t.columns[c] for _, (_, t) in alike]))
        for c in signature.columns
    }
    types = {type(t) for column in columns.values() for t in column}
    if (
        not types <= ORDINARY
        or torch._C._len_torch_dispatch_stack()  # somebody wants to see operations
        or len({device for device, _ in signature.kinds}) > 1
        or signature.device.type == "meta"
    ):
        return by_loop
    kernel = kernel_for(signature)
    copies: list[tuple[Tensor, Tensor]] = []
    table = Table(dict(zip(columns, _dense(columns, copies), strict=True)))
    if copies and _interleaved(columns):
        return by_loop
    numbers = list(chain.from_iterable([own * len(t.sizes) for own, (_, t) in alike]))
    move = _Move(kernel, table, numbers, by_loop)
    move.stride = len(signature.numbers)
    move.copies, move.written = copies, [columns[c] for c in kernel.written]
    return move


class _Move:
    """A call of a kernel, all ready."""

    def __init__(
        self, kernel: Kernel, table: Table, numbers: list[float], by_loop: Callable[[], None]
    ) -> None:
        self.kernel, self.by_loop = kernel, by_loop
        columns = table.columns
        self.sizes = array("q", table.sizes)
        self.pointers = array("q", chain.from_iterable([map(_ADDRESS, columns[c]) for c in columns]))
        self.numbers = array("d", numbers)
        self.stride = 0  # from one row's numbers to the next's
        self.written = [columns[c] for c in kernel.written]
        self.copies: list[tuple[Tensor, Tensor]] = []  # what is to be copied back, and from where
        self.steps: list[Tensor] = []  # what the kernel counts

    def __call__(self) -> None:
        steps = array("q", map(_ADDRESS, self.steps))
        if not self.kernel(self.sizes, self.pointers, self.numbers, self.stride, steps):
            self.by_loop()
            return count(self.steps)
        for original, dense in self.copies:
            original.copy_(dense)
        for tensors in self.written:
            torch._C._increment_version(tensors)


def _by_loop(rule: Callable[..., None], parts: list[Part], gradient: dict[str, Any]) -> None:
    for scalars, table in parts:
        loop(descending(rule, numbers(gradient)), table, scalars)


def _dense(
    columns: dict[str, list[Tensor]], copies: list[tuple[Tensor, Tensor]]
) -> list[list[Tensor]]:
    """The columns, but copies of rows that are not dense or not laid out alike.

    Args:
        columns: of the rows.
        copies: takes what has to be copied back afterwards, and from where.
    """
    rows = []
    for row in zip(*columns.values(), strict=True):
        tensors = row
        if in_memory_order(row) is None or any(map(Tensor.is_neg, row)):
            tensors = tuple([t.resolve_neg().contiguous() for t in row])
            pairs = zip(columns, row, tensors, strict=True)
            copies += [(t, dense) for c, t, dense in pairs if c != "g" and t is not dense]
        rows.append(tensors)
    return list(map(list, zip(*rows, strict=True)))


def _interleaved(columns: dict[str, list[Tensor]]) -> bool:
    """Whether memory of a row may belong to another, so that a copy of it would be out of date."""
    pieces = sorted(
        (t.data_ptr(), t.data_ptr() + t.itemsize * (1 + _reach(t)), letter)
        for letter, column in columns.items() for t in column if t.numel()
    )  # fmt: skip
    return any(b[0] < a[1] and {a[2], b[2]} != {"g"} for a, b in pairwise(pieces))


def _reach(t: Tensor) -> int:
    return sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
