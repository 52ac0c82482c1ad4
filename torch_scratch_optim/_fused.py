"""The fused engine: one call of a kernel, generated from the rule, updates a whole group in place.

A kernel checks nothing, so this engine does. What a kernel cannot take (subclasses, memory that
overlaps, numbers that overflow) goes to the loop, for the same result or torch's own error.
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

from ._capture import is_capturing
from ._cpp import CppKernel, require_compiler
from ._cuda import CudaKernel
from ._kernels import Kernel, Signature, kernel_for, options_of, refuse_unsupported, trace_scalars
from ._state import HOST, count
from ._tensors import Checked, overlap
from .engines import (
    GRADIENT,
    PLAIN_TENSORS,
    Row,
    Scalars,
    Table,
    descending,
    grouped,
    in_memory_order,
    loop,
    run,
    run_all,
)

_logger = logging.getLogger(__name__)
Update = Callable[[], None]


def require_kernels(params: list[Tensor]) -> None:
    """Refuse, in torch's words, parameters without kernels; and look for a compiler.

    Raises:
        RuntimeError: for a dtype or a device without kernels, or for want of a compiler.
    """
    for p in params:
        refuse_unsupported(p.device, [p.dtype.to_real()])
    if any(p.is_cpu for p in params):
        require_compiler()


def plan(
    rule: Callable[..., None],
    table: Table,
    scalars: list[Scalars],
    gradient: Scalars,
    checked: Checked | None,
    steps: list[Tensor],
    rounded: bool = False,
) -> tuple[Update, list[Tensor]]:
    """Compile kernels if necessary, and return a function that updates the rows.

    Args:
        rule: the rule.
        table: what it works on.
        scalars: its scalars, for all rows or for each row: numbers, None and bool.
        gradient: the scalars that prepare the gradient, see :func:`~.engines.descending`.
        checked: what is known of the tensors, if they are plain ones.
        steps: the step counts of all rows.
        rounded: in half precision, round after each operation, as torch's loop does.

    Returns:
        What updates the rows, and the step counts that it leaves to be counted.

    Raises:
        AttributeError, TypeError: the rule uses an operation that kernels do not have.
        RuntimeError: there is no kernel for such tensors, or it cannot be compiled.
    """
    by_loop = partial(run, loop, descending(rule, gradient))
    # Somebody wants to see operations, or a transform of torch.func has tensors without memory.
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return partial(by_loop, table, scalars), steps
    known = checked.kinds if checked is not None else None
    if checked is not None and known and len(scalars) == 1:
        flags, names, values = split(scalars[0], gradient)
        kernel = known_kernel(rule, rounded, flags, names, table, checked)
        move = _Move(kernel, table, values, partial(by_loop, table, scalars))
        move.steps = steps if checked.peek else []
        return move, [] if checked.peek else steps
    # Rows differ in numbers, which those of one call may, and in flags and kinds, which they may
    # not.
    scalars = scalars * len(table.sizes) if len(scalars) == 1 else scalars
    kinds = [known] * len(scalars) if known else [*map(table.kinds, range(len(scalars)))]
    splits = [split(own, gradient) for own in scalars]
    rows = grouped((*own[:2], kind) for own, kind in zip(splits, kinds, strict=True))
    moves = []
    for (flags, names, kind), some in rows.items():
        signature = Signature(rule, rounded, flags, names, tuple(table.columns), kind)
        part, values = table.select(some), [value for i in some for value in splits[i][2]]
        own = partial(by_loop, part, [scalars[i] for i in some])
        moves.append(_plan(signature, part, values, own, dense=known is not None))
    return partial(run_all, moves), steps


def split(
    scalars: Scalars, gradient: Scalars
) -> tuple[tuple[tuple[str, Any], ...], tuple[str, ...], list[Any]]:
    """Flags, which are compiled into a kernel, and names and values of numbers, which may vary."""
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


def _plan(
    signature: Signature, table: Table, values: list[Any], by_loop: Update, dense: bool
) -> Update:
    """A function that updates rows of one kind, which may be known to be dense and plain."""
    if dense:
        move = _Move(kernel_for(signature), table, values, by_loop)
        move.stride = len(signature.numbers)
        return move
    rows = list(table.rows())
    devices = {t.device for row in rows for t in row.values()}
    types = {type(t) for row in rows for t in row.values()}
    if not types <= PLAIN_TENSORS or len(devices) > 1 or devices == {torch.device("meta")}:
        return by_loop
    kernel = kernel_for(signature)
    taken = [_dense(row) for row in rows]
    copies = [(row[c], d[c]) for row, d in zip(rows, taken, strict=True) for c in kernel.written]
    copies = [(original, copy) for original, copy in copies if original is not copy]
    if any(d is not row for row, d in zip(rows, taken, strict=True)) and _interleaved(rows):
        return by_loop
    columns = {c: [row[c] for row in taken] for c in signature.columns}
    move = _Move(kernel, Table(columns), values, by_loop)
    move.stride, move.copies = len(signature.numbers), copies
    move.written = [[row[c] for row in rows] for c in kernel.written]
    return move


class _Move:
    """A prepared call of a kernel."""

    def __init__(self, kernel: Kernel, table: Table, values: list[float], by_loop: Update) -> None:
        self.kernel, self.by_loop = kernel, by_loop
        self.table = table  # whose memory is to stay where it is
        self.sizes = sizes if isinstance(sizes := table.sizes, array) else array("q", sizes)
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


def _dense(row: Row) -> Row:
    """A row, or copies if its tensors are not dense or have different layouts."""
    if in_memory_order(tuple(row.values())) is None or any(map(Tensor.is_neg, row.values())):
        return {symbol: t.resolve_neg().contiguous() for symbol, t in row.items()}
    return row


def _interleaved(rows: list[Row]) -> bool:
    """Whether rows may share memory, so that a copy of a row would be out of date."""
    pieces = []
    for symbol, t in chain.from_iterable([row.items() for row in rows]):
        reach = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
        end = t.data_ptr() + t.itemsize * (1 + reach)
        pieces += [(t.data_ptr(), end, symbol != "g")] * bool(t.numel())
    return overlap(pieces)


def plan_default(
    rule: Callable[..., None],
    table: Table,
    scalars: Scalars,
    gradient: Scalars,
    checked: Checked,
    steps: list[Tensor],
) -> tuple[Update, list[Tensor]] | None:
    """As :func:`plan`, if there is a kernel that was compared with the loop and has its bits."""
    flags, names, _ = split(scalars, gradient)
    key = rule, True, flags, names
    if key not in checked.kernels:
        assert checked.kinds is not None
        signature = Signature(*key, tuple(table.columns), checked.kinds)
        kernel = _if_it_can_be_had(lambda: proved_kernel(signature))
        if kernel is None and is_capturing():
            return None  # there may be one later
        checked.kernels[key] = kernel
    if checked.kernels[key] is None:
        return None
    return plan(rule, table, [scalars], gradient, checked, steps, rounded=True)


def _if_it_can_be_had(make: Callable[[], Any]) -> Any:
    """What `make` returns, or None if it fails: the user did not ask for a kernel, and without one
    the result is the same."""
    try:
        return make()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError, TypeError) as problem:
        _logger.info("no kernel by default: %s", problem)
        return None


_proved: dict[Kernel, bool] = {}  # whether they have the bits of the loop


def proved_kernel(signature: Signature) -> Kernel | None:
    """A kernel, if it has the bits of the loop on several thousand values."""
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
    """A function that updates rows and reads nothing on the host: step counts, tensors among the
    options and what is computed from them stay on the device.

    Args:
        rule: the rule.
        scalars: its scalars and those that prepare the gradient, from a step and a group's options.
        group: those options.
        table: the rows.
        checked: what is known of the tensors.
        steps: the step counts, on the device, in float32.
        found_inf: on the device, 1 if nothing is to be updated.
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
    """Update rows. The argument `group` keeps its tensors alive: the device reads them."""
    assert isinstance(move.kernel, CudaKernel)
    flag = 0 if found_inf is None else found_inf.data_ptr()
    move.kernel.move_counted(move.sizes, move.pointers, counts, options, width, flag)
    for tensors in move.written:
        torch.autograd.graph.increment_version(tensors)
