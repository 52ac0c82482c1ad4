"""Source code of kernels, generated from rules, and the kernels compiled so far."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ._capture import is_capturing
from ._cpp import CppKernel
from ._cuda import CudaKernel
from ._symbols import C_TYPES, NumberSymbol, TensorSymbol, Trace, value_in, working_type
from .engines import GRADIENT, descending

Kernel = CppKernel | CudaKernel
TARGETS: dict[str, tuple[str, type[Kernel]]] = {
    "cpu": ("kernel.cpp", CppKernel),
    "cuda": ("kernel.cu", CudaKernel),
}


class Signature(NamedTuple):
    """What a kernel is compiled for. Sizes, numbers and the number of rows may vary."""

    rule: Callable[..., None]
    rounded: bool  # to half precision after each operation
    fixed: tuple[tuple[str, Any], ...]  # scalars that are None or bool
    numbers: tuple[str, ...]  # scalars that are numbers
    columns: tuple[str, ...]
    kinds: tuple[tuple[torch.device, torch.dtype], ...]  # of each column


_kernels: dict[tuple[str, torch.device], Kernel] = {}
# Source code by rule. It is dropped with the rule, which may refer to a model.
_texts: WeakKeyDictionary[Callable[..., None], dict[Any, tuple[str, tuple[str, ...]]]]
_texts = WeakKeyDictionary()
_compiling = threading.Lock()


def _after_fork() -> None:
    global _compiling
    _compiling = threading.Lock()  # the thread that may have held it is not in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def kernel_for(signature: Signature, numbers_at: tuple[str, ...] = ()) -> Kernel:
    """The kernel of a rule, compiled on first use.

    Args:
        signature: what it is compiled for.
        numbers_at: C code that computes the scalars on the device, if the host does not.

    Raises:
        AttributeError, TypeError: the rule uses what has no spelling in a kernel.
        RuntimeError: there is no kernel for such tensors, or it cannot be compiled.
    """
    device = signature.kinds[0][0]
    text, written = source(signature, numbers_at)
    with _compiling:  # threads that ask at once wait for the first
        if (text, device) not in _kernels:
            if device.type == "cuda" and is_capturing():
                raise RuntimeError("a CUDA graph is being captured: let a step run once before")
            make = TARGETS[device.type][1]
            _kernels[text, device] = make(text, signature.columns, written, signature.kinds)
    return _kernels[text, device]


def source(signature: Signature, numbers_at: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """The source code of a kernel: the rule's statements in the template of the target; and the
    columns that it writes."""
    known = _texts.setdefault(signature.rule, {})
    key = *signature[1:], numbers_at
    if key not in known:
        known[key] = _source(signature, numbers_at)
    return known[key]


def _source(signature: Signature, numbers_at: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    device, dtypes = signature.kinds[0][0], [dtype for _, dtype in signature.kinds]
    refuse_unsupported(device, dtypes)
    name_of_rule = getattr(signature.rule, "__name__", "the rule")
    trace = Trace(name_of_rule, device.type, signature.rounded)
    columns = list(enumerate(zip(signature.columns, dtypes, strict=True)))
    row = {
        name: TensorSymbol(trace, _in_c(name, f"y{i}"), dtype, name) for i, (name, dtype) in columns
    }
    named = {name: _in_c(name, f"x{i}") for i, name in enumerate(signature.numbers)}
    scalars = dict(signature.fixed) | {k: NumberSymbol(trace, v) for k, v in named.items()}
    rule = descending(signature.rule, {name: scalars.pop(name) for name in GRADIENT})
    rule(**row, **scalars)
    elements = [f"{working_type(dtype)}& {_in_c(n, f'y{i}')}, " for i, (n, dtype) in columns]
    lines = [f"const double {c} = numbers[{i}];" for i, c in enumerate(named.values())]
    lines += trace.statements
    lines += [
        f"{_in_c(n, f'y{i}')} = {trace.written[n]};" for i, (n, _) in columns if n in trace.written
    ]
    macro = [f"X({i}, {C_TYPES[dtype]}, {int(n in trace.written)})" for i, (n, dtype) in columns]
    text = [
        _text("kernel_types.h"),
        *numbers_at,
        f"// {name_of_rule}({', '.join(signature.columns)})",
        f"INLINE void update({''.join(elements)}const double* numbers) {{",
        *[f"  {line}" for line in lines],
        "}",
        f"#define NUMBERS {len(signature.numbers)}",
        f"#define COLUMN_COUNT {len(columns)}",
        f"#define COLUMNS(X) {' '.join(macro)}",
        _text(TARGETS[device.type][0]),
    ]
    return "\n".join(text), tuple(trace.written)


def refuse_unsupported(device: torch.device, dtypes: list[torch.dtype]) -> None:
    """Refuse, in torch's words, devices and dtypes without kernels."""
    hip = device.type == "cuda" and torch.version.hip
    if hip or device.type not in (*TARGETS, "meta") or not C_TYPES.keys() >= set(dtypes):
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {list(TARGETS)}, but there are {', '.join(map(str, dtypes))} on {device}"
        )


def _in_c(name: str, otherwise: str) -> str:
    """A name that means nothing else in C."""
    return f"{name}_" if name.isascii() and name.isidentifier() else otherwise


@lru_cache
def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")


class Literal(NamedTuple):
    """An option that is compiled into a kernel: a flag, or an option that is off."""

    value: Any


def options_of(group: dict[str, Any]) -> tuple[Any, list[int]]:
    """A group's options as arguments of a kernel on a device; no number is read from the device.

    Returns:
        The options' form, for which a kernel is made: literals, ``"number"``, and dtypes of
        tensors; and the bits of the numbers and the addresses of the tensors.
    """
    words: list[int] = []

    def form(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple([form(v) for v in value])
        if isinstance(value, Tensor) and value.numel() == 1:
            if not value.is_cpu and value.dtype in C_TYPES:
                words.append(value.data_ptr())
                return value.dtype
            value = value.item()
        # What is off is decided here and now.
        if value is None or isinstance(value, (bool, str)) or value == 0:
            return Literal(value)
        if not isinstance(value, Real):
            return Literal(None)  # it belongs to somebody else
        words.extend(struct.unpack("q", struct.pack("d", value)))
        return "number"

    group = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    return tuple([(name, form(value)) for name, value in group.items()]), words


def trace_scalars(
    scalars: Callable[[Any, dict[str, Any]], dict[str, Any]], form: Any, counts: bool, name: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Generate code that computes the scalars from a step count and a group's options on a device.

    Args:
        scalars: gives the scalars, from a count and a group.
        form: of the group's options; see :func:`options_of`.
        counts: whether there is a step count.
        name: of what `scalars` belongs to, for errors.

    Returns:
        The scalars, those that are numbers as symbols; and C.
    """
    trace = Trace(name, "cuda")
    used: list[str] = []

    def symbol(form: Any) -> Any:
        if isinstance(form, Literal):
            return form.value
        if isinstance(form, tuple):
            return tuple([symbol(f) for f in form])
        here = f"options + {len(used)}"
        used.append(here)
        if form == "number":
            return NumberSymbol(trace, f"(*(const double*)({here}))", nonzero=True)
        value = f"load(**(const {C_TYPES[form]}* const*)({here}))"
        return NumberSymbol(trace, value, nonzero=True, tensor=working_type(form))

    group = {option: symbol(own) for option, own in form}
    results = scalars(NumberSymbol(trace, "step", nonzero=True) if counts else None, group)
    numbers = [v for v in results.values() if v is not None and not isinstance(v, bool)]
    lines = [
        f"#define OPTIONS {len(used)}",
        f"#define COUNTS {int(counts)}",
        "INLINE void numbers_at(double step, const int64_t* options, double* numbers) {",
        *[f"  {line}" for line in trace.statements],
        *[f"  numbers[{i}] = {value_in('double', v)};" for i, v in enumerate(numbers)],
        "}",
    ]
    return results, tuple(lines)
