"""Engines: how a rule is run over many parameters.

The rule says what, the engine says how. A *table* holds the tensors of a rule, in a column for each
of its symbols: ``{"p": parameters, "g": gradients, "m": first moments, ...}``. A *row* holds the
tensors of one parameter. Rules are elementwise, so an engine may split rows into blocks and join
rows into batches without changing one bit of the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce, update_wrapper
from itertools import chain, compress, repeat
from math import inf
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from .tensor_likes import Functional, TensorList, is_half_on_cpu

Row = dict[str, Tensor]
Kind = tuple[torch.device, torch.dtype]
Scalars = dict[str, Any]
Engine = Callable[[Callable[..., None], "Table", Scalars], None]
Key = TypeVar("Key")

# The most elements that one call updates. Temporaries (√v, g + λθ) are as large: on a CPU they
# should be small enough to be reused, yet threads must seldom wait for each other; other devices
# need enough work in each launch.
CPU_BLOCK = 2**20
DEVICE_BLOCK = 2**24
# The fewest elements for which torch's CPU kernels take another thread (at::internal::GRAIN_SIZE).
GRAIN = 2**15
# On a CPU, foreach joins tensors of up to SMALL elements, because there a call costs more than its
# work; but not FEW or fewer of them, because a list has a cost, too.
SMALL = 2**12
FEW = 16

# The scalars that prepare the gradient; a rule's own scalars have other names.
GRADIENT = ("gradient.inverse_scale", "gradient.maximize", "gradient.l2")

HALF_MAX, FLOAT_MAX = (torch.finfo(dtype).max for dtype in (torch.float16, torch.float32))
KIND = attrgetter("device", "dtype")
PYTHON_SCALARS = {float, int, bool, type(None)}
PLAIN_TENSORS = {Tensor, torch.nn.Parameter}  # neither shards nor other subclasses


class Table:
    """The tensors that a rule updates and reads.

    Args:
        columns: for each symbol of the rule, the tensors of all rows.
        sizes: the number of elements of each row's tensors, if known.
    """

    __slots__ = ("columns", "sizes")

    def __init__(
        self, columns: dict[str, list[Tensor]], sizes: Sequence[int] | None = None
    ) -> None:
        self.columns = columns
        self.sizes = [p.numel() for p in columns["p"]] if sizes is None else sizes

    def rows(self) -> Iterator[Row]:
        symbols = tuple(self.columns)
        for cells in zip(*self.columns.values(), strict=True):
            yield dict(zip(symbols, cells, strict=True))

    def where(self, wanted: Sequence[bool]) -> Table:
        """The rows for which `wanted` is true."""
        columns = {symbol: list(compress(c, wanted)) for symbol, c in self.columns.items()}
        return Table(columns, list(compress(self.sizes, wanted)))

    def kinds(self, i: int) -> tuple[Kind, ...]:
        """The device and dtype of each tensor of a row."""
        return tuple([KIND(column[i]) for column in self.columns.values()])

    def by_kind(self) -> list[tuple[tuple[Kind, ...], Table]]:
        """Rows whose tensors, column by column, have the same device and dtype."""
        columns = [list(map(KIND, column)) for column in self.columns.values()]
        if all(kinds.count(kinds[0]) == len(kinds) for kinds in columns):  # as in most models
            return [(tuple([kinds[0] for kinds in columns]), self)]
        rows = grouped(zip(*columns, strict=True))
        return [(kinds, self.select(indices)) for kinds, indices in rows.items()]

    def select(self, indices: Sequence[int]) -> Table:
        """The rows of these indices."""
        columns = {k: list(map(c.__getitem__, indices)) for k, c in self.columns.items()}
        return Table(columns, list(map(self.sizes.__getitem__, indices)))


def grouped(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """The indices of the rows that have each key."""
    rows: defaultdict[Key, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rows[key].append(i)
    return rows


def run(
    engine: Engine, rule: Callable[..., None], table: Table, scalars: Sequence[Scalars]
) -> None:
    """Run an engine with the same scalars for all rows, or with scalars for each row."""
    if engine is loop or len(scalars) == 1:
        return _loop(rule, table, scalars) if engine is loop else engine(rule, table, scalars[0])
    rows = grouped(map(id, scalars))
    if engine is foreach and (single := [i for i, *others in rows.values() if not others]):
        _loop(rule, table.select(single), [scalars[i] for i in single])  # nothing to gather
        rows = {key: indices for key, indices in rows.items() if len(indices) > 1}
    for indices in rows.values():
        engine(rule, table.select(indices), scalars[indices[0]])


def loop(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule on one tensor at a time, big tensors block by block."""
    _loop(rule, table, [scalars])


def _loop(rule: Callable[..., None], table: Table, scalars: Sequence[Scalars]) -> None:
    each = repeat(scalars[0]) if len(scalars) == 1 else scalars
    for size, own, row in zip(table.sizes, each, table.rows(), strict=False):
        for block in (row,) if size <= CPU_BLOCK else split_into_blocks(row):
            rule(**block, **own)


def foreach(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule on lists of tensors of one device and dtype.

    On a CPU only small tensors are joined, so that a batch stays in the cache of one core, and only
    if there are more than a few.
    """
    params = table.columns["p"]
    if not gathers(params, table.sizes):
        return loop(rule, table, scalars)
    large = [p.is_cpu and size > SMALL for p, size in zip(params, table.sizes, strict=True)]
    if True in large:
        loop(rule, table.where(large), scalars)
        table = table.where([not is_large for is_large in large])
    for kinds, some in table.by_kind() if table.sizes else ():
        most = GRAIN if kinds[0][0].type == "cpu" else DEVICE_BLOCK
        if max(some.sizes) > DEVICE_BLOCK:
            blocks = list(chain.from_iterable(map(split_into_blocks, some.rows())))
            some = Table({symbol: [block[symbol] for block in blocks] for symbol in some.columns})
        for start, end in _batches(some.sizes, most):
            lists = {name: TensorList(column[start:end]) for name, column in some.columns.items()}
            rule(**lists, **scalars)


def gathers(params: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    """Whether foreach joins any tensors: all on other devices, many small ones on a CPU."""
    few = sum([size <= SMALL for size in sizes]) <= FEW
    return not (few and all(p.is_cpu for p in params))


def mixed(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule on rows whose tensors differ in dtype: on the tensors themselves where torch's
    operations accept the mixture, else on copies in a common dtype."""
    for kinds, rows in table.by_kind():
        empty = [torch.empty(0, device=device, dtype=dtype) for device, dtype in kinds]
        common = None
        try:
            rule(**dict(zip(table.columns, empty, strict=True)), **scalars)
        except RuntimeError:
            common = reduce(torch.promote_types, [dtype for _, dtype in kinds])
        for block in chain.from_iterable(map(split_into_blocks, rows.rows())):
            taken = block if common is None else {s: t.to(common) for s, t in block.items()}
            rule(**taken, **scalars)
            for symbol, tensor in block.items():
                if tensor is not taken[symbol] and symbol != "g":
                    tensor.copy_(taken[symbol])


def are_mixed(columns: Iterable[Sequence[Tensor]]) -> bool:
    """Whether the tensors of a row differ in dtype."""
    first, *others = [list(map(attrgetter("dtype"), column)) for column in columns]
    return any(dtypes != first for dtypes in others)


def whole(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule on one whole tensor at a time: subclasses may not support views of blocks."""
    for row in table.rows():
        rule(**row, **scalars)


def capturable(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule with scalars that may be tensors, of one element or of one for each row.

    Gradients flow through it, a CUDA graph can capture it and a compiler can trace it, because no
    number is read on the host.
    """
    rows = list(table.rows())
    for i, row in enumerate(rows):
        own = {
            name: _of_row(value, i, row["p"], len(rows)) if isinstance(value, Tensor) else value
            for name, value in scalars.items()
        }
        functional(rule, row, own)


def _of_row(value: Tensor, i: int, p: Tensor, rows: int) -> Tensor:
    own = value.expand(rows)[i]
    return own if value.is_cpu else own.to(p.device)  # numbers of the host go along everywhere


def functional(rule: Callable[..., None], row: Row, scalars: Scalars) -> None:
    """Run the rule out of place, then write the results."""
    # Derivatives need copies: a backward pass asks for what was there before.
    keep = torch.is_grad_enabled()
    functionals = {k: Functional(tensor.clone() if keep else tensor) for k, tensor in row.items()}
    rule(**functionals, **scalars)
    for symbol, tensor in row.items():
        if symbol != "g":
            tensor.copy_(functionals[symbol].tensor)


def sparse(rule: Callable[..., None], table: Table, scalars: Scalars) -> None:
    """Run the rule on the entries of a sparse gradient: gather them, then scatter them back."""
    for row in table.rows():
        g = row.pop("g").coalesce()
        where = tuple(g.indices())
        entries = {symbol: tensor[where] for symbol, tensor in row.items()}
        # torch works with sparse tensors here, which round after each product and sum.
        functional(rule, entries | {"g": g.values()}, to_python_scalars(scalars))
        for symbol, tensor in row.items():
            tensor.index_put_(where, entries[symbol])


def descending(rule: Callable[..., None], gradient: dict[str, Any]) -> Callable[..., None]:
    """The rule, called with the prepared gradient g ← ±g / scale + λθ.

    The preparation is the same for all rules and tensor-likes. It does not write the gradient.

    Args:
        rule: the rule.
        gradient: ``gradient.inverse_scale``, 1 / scale if the loss was multiplied by a scale;
            ``gradient.maximize``, whether to ascend instead; ``gradient.l2``, the λ of a penalty
            λ‖θ‖²/2. None stands for what is absent.
    """
    inverse_scale, maximize, l2 = map(gradient.get, GRADIENT)
    if inverse_scale is None and not maximize and l2 is None:
        return rule

    def prepared(p: Any, g: Any, *state: Any, **others: Any) -> None:
        if inverse_scale is not None:
            g = g.mul(inverse_scale)
        if maximize:
            g = g.neg()
        if l2 is not None:
            g = g.add(p, alpha=l2)
        rule(p, g, *state, **others)

    return update_wrapper(prepared, rule, (), ())


def to_python_scalars(scalars: Scalars) -> dict[str, Any]:
    """Replace scalars that are tensors by their values."""
    if PYTHON_SCALARS.issuperset(map(type, scalars.values())):
        return scalars
    return {k: v.item() if isinstance(v, Tensor) else v for k, v in scalars.items()}


def are_unusual(scalars: Iterable[Scalars], most: float) -> bool:
    """Whether one is finite but larger than `most`, or neither float nor int."""
    for own in scalars:
        for value in own.values():
            if value is not None and value is not True and value is not False:
                kind = type(value)
                if (kind is not float and kind is not int) or most < abs(value) < inf:
                    return True
    return False


def try_out(
    engine: Engine, rule: Callable[..., None], table: Table, scalars: Sequence[Scalars]
) -> None:
    """Run the rule on empty tensors, so that torch refuses scalars before a row is half updated."""
    for kinds, _ in table.by_kind():
        empty = [[torch.empty(0, device=device, dtype=dtype)] for device, dtype in kinds]
        for own in {id(own): own for own in scalars}.values():
            engine(rule, Table(dict(zip(table.columns, empty, strict=True))), own)


def split_into_blocks(row: Row) -> Iterable[Row]:
    """Split a row of large tensors into rows of views, a block each.

    Tensors that are not dense, or whose layouts differ, are left whole; they are rare, because
    autograd gives a gradient its parameter's layout, and so has the state. Half precision on a CPU
    is left whole, too: torch rounds the end of a tensor differently from its middle.
    """
    p, block = row["p"], block_size(row["p"])
    whole = p.numel() <= block or is_half_on_cpu(p) or row["g"].is_sparse
    if whole or (flat := in_memory_order(tuple(row.values()))) is None:
        return (row,)
    # The fewest blocks, of even lengths, in whole cache lines.
    length = -(-p.numel() // -(-p.numel() // block) // 64) * 64
    pieces = zip(*[tensor.split(length) for tensor in flat], strict=True)
    return (dict(zip(row, piece, strict=True)) for piece in pieces)


def run_all(updates: Iterable[Callable[[], None]]) -> None:
    for update in updates:
        update()


def block_size(p: Tensor) -> int:
    """The most elements of tensors like `p` in a block."""
    return CPU_BLOCK if p.is_cpu else DEVICE_BLOCK


def in_memory_order(row: tuple[Tensor, ...]) -> list[Tensor] | None:
    """One-dimensional views of a row's tensors, if all are dense and have the same layout."""
    if all(map(Tensor.is_contiguous, row)):
        return [tensor.view(-1) for tensor in row]
    p = row[0]
    order = sorted(range(p.ndim), key=p.stride, reverse=True)
    if not p.permute(order).is_contiguous() or any(t.stride() != p.stride() for t in row):
        return None
    return [tensor.permute(order).view(-1) for tensor in row]


def _batches(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The start and end of batches of rows: of at most `most` elements, or of a single row."""
    start, left = 0, most
    for i, size in enumerate(sizes):
        if i > start and size > left:
            yield start, i
            start, left = i, most
        left -= size
    yield start, len(sizes)
