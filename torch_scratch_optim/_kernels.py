"""What a rule writes: the text of its kernel, and the kernels that there are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._cpp import CppKernel
from ._cuda import CudaKernel
from ._symbols import C_TYPES, NumberSymbol, TensorSymbol, Trace, working_type
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

    @property
    def device(self) -> torch.device:
        return self.kinds[0][0]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple([dtype for _, dtype in self.kinds])


_kernels: dict[Signature, Kernel] = {}
_compiling = threading.Lock()


def kernel_for(signature: Signature) -> Kernel:
    """The kernel of a rule, compiled when it is first asked for.

    Raises:
        AttributeError, TypeError: the rule uses what has no spelling in a kernel.
        RuntimeError: it cannot be compiled.
    """
    kernel = _kernels.get(signature)
    if kernel is None:
        with _compiling:  # threads that ask at once wait for the first
            kernel = _kernels.get(signature)
            if kernel is None:
                text, written = source(signature)
                if signature.device.type == "cpu":
                    kernel = CppKernel(text, written)
                else:
                    kernel = CudaKernel(text, written, signature)
                _kernels[signature] = kernel
    return kernel


def source(signature: Signature) -> tuple[str, list[str]]:
    """The text of a kernel, and the columns that it writes.

    The text is what the rule writes, in the template of the target.
    """
    target = signature.device.type
    if target not in TARGETS or not C_TYPES.keys() >= set(signature.dtypes):
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {TARGETS}, but there are {', '.join(map(str, signature.dtypes))} on "
            f"{signature.device}"
        )
    name_of_rule = getattr(signature.rule, "__name__", "the rule")
    trace = Trace(name_of_rule, target, signature.rounded)
    columns = zip(signature.columns, signature.dtypes, strict=True)
    row = {
        name: TensorSymbol(trace, f"c{i}", dtype, name) for i, (name, dtype) in enumerate(columns)
    }
    numbers = {
        name: NumberSymbol(trace, f"numbers[{i}]") for i, name in enumerate(signature.numbers)
    }
    scalars = numbers | dict(signature.fixed)
    rule = descending(signature.rule, {name: scalars.pop(name) for name in GRADIENT})
    rule(**row, **scalars)
    parameters = [
        f"{working_type((dtype,))}& c{i}" for i, dtype in enumerate(signature.dtypes)
    ]
    results = [
        f"c{i} = {trace.written[name]._name};"
        for i, name in enumerate(signature.columns)
        if name in trace.written
    ]
    lines = [
        *trace.definitions(),
        f"// {name_of_rule}({', '.join(signature.columns)})",
        f"INLINE void update({', '.join(parameters)}, const double* numbers) {{",
        *("  " + statement for statement in trace.statements + results),
        "}",
        f"#define NUMBERS {len(signature.numbers)}",
        f"#define COLUMN_COUNT {len(signature.columns)}",
        "#define COLUMNS(X) "
        + " ".join(
            f"X({i}, {C_TYPES[dtype]}, {int(name in trace.written)})"
            for i, (name, dtype) in enumerate(zip(signature.columns, signature.dtypes, strict=True))
        ),
        "#define ELEMENT(index, type, written) c##index,",
    ]
    template = "kernel.cpp" if target == "cpu" else "kernel.cu"
    return "\n".join([_text("kernel_types.h"), *lines, _text(template)]), list(trace.written)


@lru_cache
def _text(file: str) -> str:
    return Path(__file__).with_name(file).read_text(encoding="utf-8")
