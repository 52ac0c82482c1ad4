"""The fused engine: a rule compiled by torch.compile, so that it passes over memory only once.

One trace of a rule serves every size, learning rate and step: sizes are symbols in it, and numbers
arrive in a small tensor. What a trace fixes is which state there is, which flags are set, the
dtypes, the device and the number of threads.
"""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from . import engines
from .engines import SMALL, Cells, Kind, Row, Table, alike, functional, in_memory_order, numbers

# A call of compiled code costs some 15 to 100 µs, so it takes several tensors at once, one in each
# lane. More lanes make the first call longer, which compiles, and beyond five few steps shorter.
LANES = 5
# So many small tensors are copied together into one lane: that is cheaper than a lane for each.
PACK = 64
# What is compiled for a GPU indexes a lane in 32 bits.
LONGEST = 2**30

UNSCALE = "1 / grad_scale"
Copy = tuple[Cells, list[Tensor] | Cells]
Lane = Sequence[Tensor]
Kernel = Callable[..., None]
_kernels: dict[object, tuple[Kernel, list[Lane]]] = {}


def fused(
    rule: Callable[..., None],
    table: Table,
    scalars: dict[str, Any],
    grad_scale: Tensor | None = None,
) -> None:
    """Run the compiled rule on lanes of flat tensors.

    Dense tensors are updated where they are. Small ones are copied together into one lane, others
    that are not dense or not laid out alike into a lane each, and what was updated is copied back.
    What compiled code cannot take is left to the loop, for the same result or torch's error.

    Args:
        rule: the rule, written in words that :class:`~.carriers.Functional` knows.
        table: what the rule works on.
        scalars: its numbers, any of which may change from call to call, and its flags.
        grad_scale: by how much the gradients are too large, one number. They stay as they are; the
            rule is given them divided by it.
    """
    if not _is_plain(table):
        if grad_scale is not None:
            table = table | {"g": engines.unscaled(table["g"], grad_scale)}
        return engines.loop(rule, table, scalars)
    scalars = numbers(scalars)
    if grad_scale is not None:
        scalars = scalars | {UNSCALE: 1 / grad_scale.item()}
    fixed = {k: v for k, v in scalars.items() if v is None or isinstance(v, bool)}
    varied = {k: v for k, v in scalars.items() if k not in fixed}
    values = torch.tensor(list(varied.values()), dtype=torch.float64, device="cpu")
    letters = tuple(table)
    for kind, rows in alike(table).items():
        key = (rule, letters, *fixed.items(), *varied, kind, torch.get_num_threads())
        if key not in _kernels:
            _kernels[key] = _compile(
                rule, dict(zip(letters, rows[0], strict=True)), fixed, list(varied), values
            )
        kernel, fillers = _kernels[key]
        lanes, copies = _lanes(letters, rows, kind)
        for start in range(0, len(lanes), len(fillers)):
            taken = lanes[start : start + len(fillers)]
            kernel(values, *chain(*taken, *fillers[len(taken) :]))
        for originals, copied in copies:
            torch._foreach_copy_(originals, copied)


def _is_plain(table: Table) -> bool:
    """Whether compiled code, which checks nothing, can take it: tensors of no subclass (a fake one
    has no memory) and, in each row, of one shape (a checkpoint may have brought another)."""
    shapes = [p.shape for p in table["p"]]
    return engines.ORDINARY.issuperset(map(type, table["p"])) and all(
        [tensor.shape for tensor in column] == shapes for column in table.values()
    )


def _lanes(
    letters: tuple[str, ...], rows: list[Cells], kind: Kind
) -> tuple[list[Lane], list[Copy]]:
    """Rows as lanes, and what has to be copied back from lanes afterwards, to where."""
    lanes: list[Lane] = []
    small: list[Cells] = []
    copied: list[Copy] = []
    for row in rows:
        size = row[0].numel()
        if size <= SMALL:
            if size > 0:
                small.append(row)
            continue
        if (flat := in_memory_order(row)) is None:
            dense = [tensor.contiguous() for tensor in row]
            flat = [tensor.view(-1) for tensor in dense]
            copied += [((t,), (d,)) for t, d in zip(row, dense, strict=True)]
        pieces = [flat] if size <= LONGEST else zip(*(t.split(LONGEST) for t in flat), strict=True)
        lanes += pieces
    for start in range(0, len(small), PACK):
        columns = list(zip(*small[start : start + PACK], strict=True))
        pack = _pack(tuple([p.shape for p in columns[0]]), kind, threading.get_ident())
        lanes.append([flat for flat, _, _ in pack])
        for originals, (_, filled, views) in zip(columns, pack, strict=True):
            torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in originals], out=filled)
            copied.append((originals, views))
    # All but the gradients, which no rule writes.
    width, gradient = len(letters), letters.index("g")
    return lanes, [pair for i, pair in enumerate(copied) if i % width != gradient]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # it serves steps in every mode
def _pack(
    shapes: tuple[torch.Size, ...], kind: Kind, thread: int
) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """For each letter a lane that holds tensors of these shapes one after another: all of it, the
    part that they fill, and their views in it."""
    device, *dtypes = kind
    sizes = [shape.numel() for shape in shapes]
    pack = []
    for dtype in dtypes:
        # Two elements more, because a trace takes sizes of 0 and 1 for special.
        flat = torch.ones(sum(sizes) + 2, dtype=dtype, device=device)
        pieces = zip(flat.split([*sizes, 2]), shapes, strict=False)
        pack.append((flat, flat[:-2], [piece.view(shape) for piece, shape in pieces]))
    return pack


def _compile(
    rule: Callable[..., None], row: Row, fixed: dict[str, Any], names: list[str], values: Tensor
) -> tuple[Kernel, list[Lane]]:
    """Trace the rule over all lanes and compile it; also make fillers for lanes that stay empty."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list  # takes more than a second

    letters = tuple(row)

    def run(values: Tensor, *tensors: Tensor) -> None:
        scalars = dict(zip(names, values.unbind(), strict=True)) | fixed
        unscale = scalars.pop(UNSCALE, None)
        for start in range(0, len(tensors), len(letters)):
            lane = tensors[start : start + len(letters)]
            row = dict(zip(letters, lane, strict=True))
            if unscale is not None:
                row["g"] = row["g"] * unscale
            functional(rule, row, scalars)

    # torch counts compilations for each code object and gives up after a few; so each kernel gets
    # a code object of its own.
    code = run.__code__.replace(co_name=f"fused_{getattr(rule, '__name__', 'rule')}")
    own = types.FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
    # Without guards, checks at each call of what the trace relies on: our key has checked it.
    compiled: Any = torch.compile(
        own,
        fullgraph=True,
        dynamic=True,
        options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    )

    def lanes(sizes: list[int]) -> list[Lane]:
        return [[t.new_ones(size) for t in row.values()] for size in sizes]

    # The compiler plans for the sizes that it is shown: large, to be shared out to all threads; and
    # no two alike, or it would take them for one symbol. Compiled ahead of time, a kernel is kept
    # whoever resets the compiler.
    shown = chain(*lanes([2**16 + 2**7 * lane for lane in range(LANES)]))
    with ThreadPoolExecutor(1) as meanwhile:
        if row["p"].is_cpu:
            # Once on each machine torch tries out, by compiling for seven seconds, which vector
            # instructions there are. Let it begin now, while the rule is traced.
            meanwhile.submit(valid_vec_isa_list)
        kernel = compiled.aot_compile(((values, *shown), {}))
    kernel.disable_guard_check()  # there are none, and looking for them takes 4 µs
    return kernel, lanes([2] * LANES)


@lru_cache(maxsize=1)
def require_compiler() -> None:
    """Look for what compiles CPU code, before any training begins.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    # The compiler's import logs a line where there is a CUDA toolkit but no GPU.
    logger = logging.getLogger("torch.utils.cpp_extension")
    before, logger.disabled = logger.disabled, True
    try:
        # Takes more than a second, so not for those who compile nothing.
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
        from torch.utils import cpp_extension  # noqa: F401  # its import is what logs
    finally:
        logger.disabled = before
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "fused=True compiles the update and needs a C++ compiler, but none was found: install "
            "one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install) or name it in "
            "the environment variable CXX; foreach and loop need none"
        ) from error
