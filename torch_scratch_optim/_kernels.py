"""What a rule writes: the text of its kernel, and the kernels that there are."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._cpp import CppKernel
from ._cuda import CudaKernel
from ._symbols import C_TYPES, NumberSymbol, TensorSymbol, Trace, literal, working_type
from .engines import GRADIENT, descending

Kernel = CppKernel | CudaKernel
TARGETS = ["cpu", "cuda"]


class Signature(NamedTuple):
    """All that a kernel is made for. Sizes, numbers and how many rows there are may vary."""

    rule: Callable[..., None]
    rounded: bool  # to half precision after each operation
    fixed: tuple[tuple[str, Any], ...]  # scalars that are None or bool
    numbers: tuple[str, ...]  # scalars that are numbers
    columns: tuple[str, ...]
    kinds: tuple[tuple[torch.device, torch.dtype], ...]  # of each column


_kernels: dict[tuple[str, torch.device], Kernel] = {}
_compiling = threading.Lock()


def kernel_for(signature: Signature, numbers_at: list[str] | None = None) -> Kernel:
    """The kernel of a rule, compiled when it is first asked for.

    Args:
        signature: what it is made for.
        numbers_at: C that works out the numbers on the device, if the host does not.

    Raises:
        AttributeError, TypeError: the rule uses what has no spelling in a kernel.
        RuntimeError: there is no kernel for such tensors, or it cannot be compiled.
    """
    device = signature.kinds[0][0]
    text, written = source(signature)
    text = "\n".join([_text("kernel_types.h"), *(numbers_at or []), text])
    with _compiling:  # threads that ask at once wait for the first
        kernel = _kernels.get((text, device))
        if kernel is None:
            if device.type == "cpu":
                kernel = CppKernel(text, written)
            else:
                columns = [
                    (name in written, dtype.itemsize)
                    for name, (_, dtype) in zip(signature.columns, signature.kinds, strict=True)
                ]
                kernel = CudaKernel(text, written, columns, len(signature.numbers), device)
            _kernels[text, device] = kernel
    return kernel


@lru_cache(maxsize=256)
def source(signature: Signature) -> tuple[str, list[str]]:
    """The text of a kernel, what the rule writes and the template around it; and the columns that
    it writes."""
    device, dtypes = signature.kinds[0][0], [dtype for _, dtype in signature.kinds]
    if device.type not in TARGETS or not C_TYPES.keys() >= set(dtypes):
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {TARGETS}, but there are {', '.join(map(str, dtypes))} on {device}"
        )
    name_of_rule = getattr(signature.rule, "__name__", "the rule")
    trace = Trace(name_of_rule, device.type, signature.rounded)
    row = {
        name: TensorSymbol(trace, f"c{i}", dtype, name)
        for i, (name, dtype) in enumerate(zip(signature.columns, dtypes, strict=True))
    }
    scalars: dict[str, Any] = dict(signature.fixed)
    for i, name in enumerate(signature.numbers):
        scalars[name] = NumberSymbol(trace, f"numbers[{i}]")
    rule = descending(signature.rule, {name: scalars.pop(name) for name in GRADIENT})
    rule(**row, **scalars)
    elements = ", ".join(f"{working_type([dtype])}& c{i}" for i, dtype in enumerate(dtypes))
    results = [
        f"c{i} = {trace.written[name]._name};"
        for i, name in enumerate(signature.columns)
        if name in trace.written
    ]
    columns = [
        f"X({i}, {C_TYPES[dtype]}, {int(name in trace.written)})"
        for i, (name, dtype) in enumerate(zip(signature.columns, dtypes, strict=True))
    ]
    lines = [
        *trace.definitions(),
        f"// {name_of_rule}({', '.join(signature.columns)})",
        f"INLINE void update({elements}, const double* numbers) {{",
        *[f"  {line}" for line in trace.statements + results],
        "}",
        f"#define NUMBERS {len(signature.numbers)}",
        f"#define COLUMN_COUNT {len(columns)}",
        f"#define COLUMNS(X) {' '.join(columns)}",
        "#define ELEMENT(index, type, written) c##index,",
    ]
    template = _text("kernel.cpp" if device.type == "cpu" else "kernel.cu")
    return "\n".join([*lines, template]), list(trace.written)


@lru_cache
def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


class Options(NamedTuple):
    """The options of a group, as a kernel on a device is given them.

    Attributes:
        shape: what they are: literals, numbers, and tensors of a dtype. A kernel is made for it.
        words: the bits of the numbers and the addresses of the tensors.
    """

    shape: Any
    words: list[int]


def options_of(group: dict[str, Any]) -> Options:
    """What a kernel is given of a group, without reading a number from a device."""
    words: list[int] = []

    def shape(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_cpu:
            value = value.item()
        if isinstance(value, Tensor):
            words.append(value.data_ptr())
            return value.dtype
        if isinstance(value, (tuple, list)):
            return tuple([shape(v) for v in value])
        # What is off is decided here and now; see NumberSymbol.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0:
            words.extend(struct.unpack("q", struct.pack("d", value)))
            return "number"
        return Literal(value)

    skipped = ("params", "param_names")
    return Options(
        tuple([(name, shape(value)) for name, value in group.items() if name not in skipped]), words
    )


class Literal(NamedTuple):
    """An option that a kernel is made for."""

    value: Any


def trace_scalars(
    scalars: Callable[[Any, dict[str, Any]], dict[str, Any]], shape: Any, counts: bool, name: str
) -> tuple[dict[str, Any], list[str]]:
    """Write how numbers follow from a step count and a group's options, on a device.

    Args:
        scalars: gives the scalars, from a count and a group.
        shape: of the group's options; see :class:`Options`.
        counts: whether there is a step count.
        name: of what `scalars` belongs to, for errors.

    Returns:
        The scalars that are None or bool, with None in place of those that are numbers; and C.
    """
    trace = Trace(name, "cuda")
    index = iter(range(10_000))

    def symbol(shape: Any) -> Any:
        if isinstance(shape, Literal):
            return shape.value
        if isinstance(shape, tuple):
            return tuple([symbol(s) for s in shape])
        i = next(index)
        if shape == "number":
            return NumberSymbol(trace, f"(*(const double*)(options + {i}))", nonzero=True)
        c_type = C_TYPES[shape]
        return NumberSymbol(
            trace, f"load(*(const {c_type}*)options[{i}])", True, working_type([shape])
        )

    group = {name: symbol(own) for name, own in shape}
    results = scalars(NumberSymbol(trace, "step", nonzero=True) if counts else None, group)
    numbers = {k: v for k, v in results.items() if not (v is None or isinstance(v, bool))}
    lines = [
        f"#define OPTIONS {next(index)}",
        f"#define COUNTS {int(counts)}",
        "INLINE void numbers_at(double step, const int64_t* options, double* numbers) {",
        *[f"  {line}" for line in trace.statements],
        *[
            f"  numbers[{i}] = {v._name if isinstance(v, NumberSymbol) else literal(v)};"
            for i, v in enumerate(numbers.values())
        ],
        "}",
    ]
    return results, lines
