"""The fused engine: one call of a kernel that the rule has written moves a whole group, in place.

A kernel checks nothing, so this engine does. What a kernel cannot take (subclasses, memory that
overlaps, numbers that overflow) is left to the loop, for the same result or torch's own error.
"""

from __future__ import annotations

import logging
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ._checks import KIND, Checked, Kind, count
from ._cpp import CppKernel
from ._cuda import CudaKernel
from ._kernels import Kernel, Options, Signature, kernel_for, options_of, trace_scalars
from .engines import (
    GRADIENT,
    ORDINARY,
    Part,
    Table,
    descending,
    in_memory_order,
    loop,
    numbers,
)
from .on_device import is_capturing

HOST = {(torch.device("cpu"), torch.float32)}  # where torch keeps step counts
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
        flags, names, numbers = _split(scalars, gradient)
        if checked is not None and checked.kinds and len(parts) == 1:
            key = (rule, rounded, flags, names)
            return _plan_checked(key, table, numbers, scalars, gradient, checked, steps)
        for kinds, rows in by_kind(table):
            key = (rule, rounded, flags, names, tuple(rows.columns), kinds)
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
    kernel: Kernel | None = checked.kernels.get(key)
    if kernel is None:
        kernel = kernel_for(_signature(key, table, checked))
        checked.kernels[key] = kernel
        if isinstance(kernel, CppKernel) and checked.steps == HOST:
            checked.peek = kernel.peek
    move = _Move(kernel, table, numbers, by_loop)
    if checked.peek is not None:
        move.steps = steps
        return move, []
    return move, steps


def _signature(key: tuple[Any, ...], table: Table, checked: Checked) -> Signature:
    assert checked.kinds is not None
    return Signature(*key, tuple(table.columns), checked.kinds)


def plan_default(
    rule: Callable[..., None],
    part: Part,
    gradient: dict[str, Any],
    checked: Checked,
    steps: list[Tensor],
) -> tuple[Callable[[], None], list[Tensor]] | None:
    """As :func:`plan`, with a kernel that has been seen to have the bits of the loop; None if there
    is none, so that foreach has to do."""
    scalars, table = part
    flags, names, _ = _split(scalars, gradient)
    key = (rule, True, flags, names)
    if key not in checked.kernels:
        if is_capturing():
            return None
        checked.kernels[key] = proved_kernel(_signature(key, table, checked))
    if checked.kernels[key] is None:
        return None
    return plan(rule, [part], gradient, checked, steps, rounded=True)


@lru_cache(maxsize=256)
def proved_kernel(signature: Signature) -> Kernel | None:
    """A kernel, if it has the bits of the loop on some thousand values."""
    try:
        kernel = kernel_for(signature)
        return kernel if _has_the_bits_of_the_loop(kernel, signature) else None
    except (AttributeError, RuntimeError, TypeError) as problem:
        _log_missing(problem)
        return None


def _log_missing(problem: Exception) -> None:
    """Nobody asked for a kernel, and without one the result is the same."""
    logging.getLogger(__name__).info("no kernel by default: %s", problem)


def _has_the_bits_of_the_loop(kernel: Kernel, signature: Signature) -> bool:
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        drawn = (torch.rand(len(signature.numbers), generator=random) * 0.9 + 0.05).tolist()
        scalars = dict(signature.fixed) | dict(zip(signature.numbers, drawn, strict=True))
        gradient = {name: scalars.pop(name) for name in GRADIENT}
        by_kernel, by_loop = {}, {}
        for name, (device, dtype) in zip(signature.columns, signature.kinds, strict=True):
            exponents = torch.rand(4099, generator=random) * 8 - 5
            values = torch.randn(4099, generator=random) * 10**exponents
            # Most state is positive, some is not.
            rows = [values if name in ("p", "g") else values.abs(), values[:5]]
            by_kernel[name] = [row.to(device, dtype) for row in rows]
            by_loop[name] = [row.clone() for row in by_kernel[name]]
        _Move(kernel, Table(by_kernel), drawn, lambda: None)()
        loop(descending(signature.rule, gradient), Table(by_loop), scalars)
        for a, b in zip(chain(*by_kernel.values()), chain(*by_loop.values()), strict=True):
            if not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
                return False
    return True


def plan_on_device(
    rule: Callable[..., None],
    scalars: Callable[[Any, dict[str, Any]], dict[str, Any]],
    group: dict[str, Any],
    table: Table,
    checked: Checked,
    steps: list[Tensor],
    found_inf: Tensor | None,
    *key: Any,
) -> Callable[[], None] | None:
    """What moves rows with nothing read on the host: step counts, tensors among the options and
    all that follows from them stay on the device.

    Args:
        rule: the rule.
        scalars: its scalars and how its gradient is made, from a step and a group's options.
        group: those options.
        table: what it works on.
        checked: what is known of the tensors; a kernel can take them as they are.
        steps: the step counts, on the device, in float32.
        found_inf: on the device, 1 if nothing is to be moved.
        key: what else `scalars` depends on.

    Returns:
        None if no kernel can be had, and ``fused`` is not asked for.

    Raises:
        AttributeError, TypeError: the rule or `scalars` uses what has no spelling in a kernel.
        RuntimeError: no kernel can be compiled.
    """
    options = options_of(group)
    known = (rule, options.shape, *key)
    if known not in checked.kernels:
        name = getattr(rule, "__name__", "the rule")
        try:
            traced, lines = trace_scalars(scalars, options.shape, bool(steps), name)
            flags, names, _ = _split(traced, {})
            signature = _signature((rule, False, flags, names), table, checked)
            checked.kernels[known] = kernel_for(signature, lines)
        except (AttributeError, RuntimeError, TypeError) as problem:
            if group.get("fused"):
                raise
            _log_missing(problem)
            checked.kernels[known] = None
    kernel = checked.kernels[known]
    if kernel is None:
        return None
    return partial(_move_on_device, kernel, table, steps, options, found_inf, group)


def _move_on_device(
    kernel: CudaKernel,
    table: Table,
    steps: list[Tensor],
    options: Options,
    found_inf: Tensor | None,
    group: dict[str, Any],
) -> None:
    columns = table.columns
    pointers = array("q", chain.from_iterable([map(_ADDRESS, columns[c]) for c in columns]))
    moved = kernel.move_counted(
        array("q", table.sizes),
        pointers,
        array("q", map(_ADDRESS, steps)),
        array("q", options.words),
        0 if found_inf is None else found_inf.data_ptr(),
    )
    if not moved:
        raise RuntimeError("parameters, gradients or state overlap in memory or have none")
    for column in kernel.written:
        torch._C._increment_version(columns[column])


def _split(
    scalars: dict[str, Any], gradient: dict[str, Any]
) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...], list[float]]:
    """Flags, which a kernel is made for, and names and values of numbers, which may vary."""
    flags, names, numbers = [], [], []
    for name, value in chain(scalars.items(), gradient.items()):
        if value is None or value is True or value is False:
            flags.append((name, value))
        else:
            names.append(name)
            numbers.append(value)
    return tuple(flags), tuple(names), numbers


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
        self.pointers = array(
            "q", chain.from_iterable([map(_ADDRESS, columns[c]) for c in columns])
        )
        self.numbers = array("d", numbers)
        self.stride = 0  # from one row's numbers to the next's
        self.written = [columns[c] for c in kernel.written]
        self.copies: list[tuple[Tensor, Tensor]] = []  # what is to be copied back, and from where
        self.steps: list[Tensor] = []  # what the kernel counts, too

    def __call__(self) -> None:
        call = (self.sizes, self.pointers, self.numbers, self.stride)
        if self.steps:
            call += (array("q", map(_ADDRESS, self.steps)),)
        if not self.kernel(*call):
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
