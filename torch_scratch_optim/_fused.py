"""The fused engine: one call of a kernel that the rule has written moves a whole group, in place.

A kernel checks nothing, so this engine does. What a kernel cannot take (subclasses, memory that
overlaps, numbers that overflow) is left to the loop, for the same result or torch's own error.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ._checks import HOST, Checked, count, overlap
from ._cpp import CppKernel, require_compiler
from ._cuda import CudaKernel
from ._kernels import Kernel, Signature, kernel_for, options_of, refuse_unsupported, trace_scalars
from .engines import (
    GRADIENT,
    ORDINARY,
    Part,
    Row,
    Table,
    descending,
    in_memory_order,
    loop,
    run_all,
)
from .on_device import is_capturing

_logger = logging.getLogger(__name__)
Update = Callable[[], None]
Scalars = dict[str, Any]


def require_kernels(params: list[Tensor]) -> None:
    """Refuse, in torch's words, parameters that no kernel can move; and look for a compiler.

    Raises:
        RuntimeError: for a dtype or a device without kernels, or for want of a compiler.
    """
    for p in params:
        refuse_unsupported(p.device, [p.dtype.to_real()])
    if any(p.is_cpu for p in params):
        require_compiler()


def plan(
    rule: Callable[..., None],
    parts: list[Part],
    gradient: Scalars,
    checked: Checked | None,
    steps: list[Tensor],
    rounded: bool = False,
) -> tuple[Update, list[Tensor]]:
    """Compile what must be compiled, and return what moves rows.

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
        AttributeError, TypeError: the rule uses what has no spelling in a kernel.
        RuntimeError: there is no kernel for such tensors, or it cannot be compiled.
    """
    # Somebody wants to see operations, or a transform of torch.func has tensors without memory.
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return partial(_by_loop, rule, parts, gradient), steps
    # Parts differ in numbers, which the rows of one call may, and in flags, which they may not.
    calls: dict[Any, list[tuple[list[float], Part]]] = {}
    for scalars, table in parts:
        flags, names, values = split(scalars, gradient)
        if checked is not None and checked.kinds and len(parts) == 1:
            kernel = known_kernel(rule, rounded, flags, names, table, checked)
            move = _Move(kernel, table, values, partial(_by_loop, rule, parts, gradient))
            move.steps = steps if checked.peek else []
            return move, [] if checked.peek else steps
        for kinds, rows in table.by_kind():
            key = Signature(rule, rounded, flags, names, tuple(rows.columns), kinds)
            calls.setdefault(key, []).append((values, (scalars, rows)))
    moves = [_plan(signature, alike, gradient) for signature, alike in calls.items()]
    return partial(run_all, moves), steps


def split(
    scalars: Scalars, gradient: Scalars
) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...], list[Any]]:
    """Flags, which a kernel is made for, and names and values of numbers, which may vary."""
    flags, names, values = [], [], []
    for name, value in chain(scalars.items(), gradient.items()):
        if value is None or value is True or value is False:
            flags.append((name, value))
        else:
            names.append(name)
            values.append(value)
    return tuple(flags), tuple(names), values


def known_kernel(
    rule: Callable[..., None], rounded: bool, flags: Any, names: Any, table: Table, checked: Checked
) -> Kernel:
    """The kernel of tensors that have been checked."""
    key = rule, rounded, flags, names
    kernel: Kernel | None = checked.kernels.get(key)
    if kernel is None:
        assert checked.kinds is not None
        kernel = kernel_for(Signature(*key, tuple(table.columns), checked.kinds))
        checked.kernels[key] = kernel
        if isinstance(kernel, CppKernel) and checked.steps == HOST:
            checked.peek = kernel.peek
    return kernel


def _plan(signature: Signature, alike: list[tuple[list[float], Part]], gradient: Scalars) -> Update:
    """What moves rows of one kind."""
    parts = [part for _, part in alike]
    by_loop = partial(_by_loop, signature.rule, parts, gradient)
    rows = [row for _, table in parts for row in table.rows()]
    devices = {t.device for row in rows for t in row.values()}
    types = {type(t) for row in rows for t in row.values()}
    if not types <= ORDINARY or len(devices) > 1 or devices == {torch.device("meta")}:
        return by_loop
    kernel = kernel_for(signature)
    dense = [_dense(row) for row in rows]
    copies = [(row[c], d[c]) for row, d in zip(rows, dense, strict=True) for c in kernel.written]
    copies = [(original, copy) for original, copy in copies if original is not copy]
    if any(d is not row for row, d in zip(rows, dense, strict=True)) and _interleaved(rows):
        return by_loop
    table = Table({c: [row[c] for row in dense] for c in signature.columns})
    values = [value for own, (_, t) in alike for value in own * len(t.sizes)]
    move = _Move(kernel, table, values, by_loop)
    move.stride, move.copies = len(signature.numbers), copies
    move.written = [[row[c] for row in rows] for c in kernel.written]
    return move


class _Move:
    """A call of a kernel, all ready."""

    def __init__(self, kernel: Kernel, table: Table, values: list[float], by_loop: Update) -> None:
        self.kernel, self.by_loop = kernel, by_loop
        self.table = table  # whose memory is to stay where it is
        self.sizes = array("q", table.sizes)
        addresses = [map(Tensor.data_ptr, column) for column in table.columns.values()]
        self.pointers = array("q", chain.from_iterable(addresses))
        if 0 in self.pointers:
            for size, *row in zip(table.sizes, *table.columns.values(), strict=True):
                if size and not all(map(Tensor.data_ptr, row)):
                    raise RuntimeError("a parameter, its gradient or its state has no memory")
        self.numbers = array("d", values)
        self.stride = 0  # from one row's numbers to the next's
        self.written = [table.columns[c] for c in kernel.written]
        self.copies: list[tuple[Tensor, Tensor]] = []  # what is to be copied back, and from where
        self.steps: list[Tensor] = []  # what the kernel counts, too

    def __call__(self) -> None:
        counted = [array("q", map(Tensor.data_ptr, self.steps))] if self.steps else []
        if not self.kernel(self.sizes, self.pointers, self.numbers, self.stride, *counted):
            self.by_loop()
            return count(self.steps) if self.steps else None
        for original, dense in self.copies:
            original.copy_(dense)
        for tensors in self.written:
            torch.autograd.graph.increment_version(tensors)


def _by_loop(rule: Callable[..., None], parts: list[Part], gradient: Scalars) -> None:
    for scalars, table in parts:
        loop(descending(rule, gradient), table, scalars)


def _dense(row: Row) -> Row:
    """A row, or copies if its tensors are not dense or not laid out alike."""
    if in_memory_order(tuple(row.values())) is None or any(map(Tensor.is_neg, row.values())):
        return {letter: t.resolve_neg().contiguous() for letter, t in row.items()}
    return row


def _interleaved(rows: list[Row]) -> bool:
    """Whether memory of a row may belong to another, so that a copy of it would be out of date."""
    pieces = []
    for letter, t in chain.from_iterable([row.items() for row in rows]):
        reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        end = t.data_ptr() + t.itemsize * (1 + reach)
        pieces += [(t.data_ptr(), end, letter != "g")] * bool(t.numel())
    return overlap(pieces)


def plan_default(
    rule: Callable[..., None], part: Part, gradient: Scalars, checked: Checked, steps: list[Tensor]
) -> tuple[Update, list[Tensor]] | None:
    """As :func:`plan`, if there is a kernel that has been seen to have the bits of the loop."""
    flags, names, _ = split(part[0], gradient)
    key = rule, True, flags, names
    if key not in checked.kernels:
        assert checked.kinds is not None
        signature = Signature(*key, tuple(part[1].columns), checked.kinds)
        kernel = _if_it_can_be_had(lambda: proved_kernel(signature))
        if kernel is None and is_capturing():
            return None  # there may be one later
        checked.kernels[key] = kernel
    if checked.kernels[key] is None:
        return None
    return plan(rule, [part], gradient, checked, steps, rounded=True)


def _if_it_can_be_had(make: Callable[[], Any]) -> Any:
    """What `make` returns, or None: nobody asked for a kernel, and without one the result is the
    same."""
    try:
        return make()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError) as problem:
        _logger.info("no kernel by default: %s", problem)
        return None


_proved: dict[Kernel, bool] = {}  # whether they have the bits of the loop


def proved_kernel(signature: Signature) -> Kernel | None:
    """A kernel, if it has the bits of the loop on some thousand values."""
    kernel = kernel_for(signature)
    if kernel not in _proved:
        if is_capturing():
            return None
        _proved[kernel] = _has_the_bits_of_the_loop(kernel, signature)
    return kernel if _proved[kernel] else None


def _has_the_bits_of_the_loop(kernel: Kernel, signature: Signature) -> bool:
    random = torch.Generator("cpu").manual_seed(0)
    for _ in range(3):
        drawn = (
            torch.rand(len(signature.numbers), generator=random, device="cpu") * 0.9 + 0.05
        ).tolist()
        scalars = dict(signature.fixed) | dict(zip(signature.numbers, drawn, strict=True))
        gradient = {name: scalars.pop(name) for name in GRADIENT}
        twins: list[dict[str, list[Tensor]]] = [{}, {}]
        for name, (device, dtype) in zip(signature.columns, signature.kinds, strict=True):
            sizes = 10 ** (torch.rand(4099, generator=random, device="cpu") * 8 - 5)
            values = torch.randn(4099, generator=random, device="cpu") * sizes
            # Most state is positive, some is not.
            rows = [values if name in ("p", "g") else values.abs(), values[:5]]
            for twin in twins:
                twin[name] = [row.to(device, dtype, copy=True) for row in rows]
        _Move(kernel, Table(twins[0]), drawn, lambda: None)()
        loop(descending(signature.rule, gradient), Table(twins[1]), scalars)
        for a, b in zip(*[chain(*twin.values()) for twin in twins], strict=True):
            if not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
                return False
    return True


def plan_on_device(
    rule: Callable[..., None],
    scalars: Callable[[Any, Scalars], Scalars],
    group: Scalars,
    table: Table,
    checked: Checked,
    steps: list[Tensor],
    found_inf: Tensor | None,
    *key: Any,
) -> Update | None:
    """What moves rows with nothing read on the host: step counts, tensors among the options and
    all that follows from them stay on the device.

    Args:
        rule: the rule.
        scalars: its scalars and how its gradient is made, from a step and a group's options.
        group: those options.
        table: what it works on.
        checked: what is known of the tensors; a kernel can take them as they are.
        steps: the step counts, on the device, in float32.
        found_inf: on the device, 1 if nothing is to move.
        key: what else `scalars` depends on.

    Returns:
        None if memory overlaps, or if no kernel can be had and ``fused`` is not asked for.

    Raises:
        AttributeError, TypeError: the rule or `scalars` uses what has no spelling in a kernel.
        RuntimeError: no kernel can be compiled.
    """
    form, words = options_of(group)
    known = (rule, form, *key)
    if known not in checked.kernels:

        def make() -> tuple[Kernel, int]:
            assert checked.kinds is not None
            name = getattr(rule, "__name__", "rule")
            traced, lines = trace_scalars(scalars, form, bool(steps), name)
            flags, names, _ = split(traced, {})
            signature = Signature(rule, False, flags, names, tuple(table.columns), checked.kinds)
            return kernel_for(signature, lines), len(names)

        made = make() if group.get("fused") else _if_it_can_be_had(make)
        if made is None and is_capturing():
            return None  # there may be one later
        checked.kernels[known] = made
    if checked.kernels[known] is None:
        return None
    kernel, width = checked.kernels[known]
    move = _Move(kernel, table, [], lambda: None)
    if kernel.overlap(move.sizes, move.pointers):
        return None
    counts = array("q", map(Tensor.data_ptr, steps))
    return partial(_move_counted, move, counts, array("q", words), width, found_inf, group)


def _move_counted(
    move: _Move,
    counts: array[int],
    options: array[int],
    width: int,
    found_inf: Tensor | None,
    group: Scalars,
) -> None:
    """Move rows. The group is kept, for its tensors are read on the device."""
    assert isinstance(move.kernel, CudaKernel)
    flag = 0 if found_inf is None else found_inf.data_ptr()
    move.kernel.move_counted(move.sizes, move.pointers, counts, options, width, flag)
    for tensors in move.written:
        torch.autograd.graph.increment_version(tensors)
