"""Scalars worked out in C, as steps counted on a device use them."""

from __future__ import annotations

import ctypes
import math
import subprocess
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch_scratch_optim as scratch
from torch_scratch_optim import _kernels
from torch_scratch_optim._cpp import require_compiler

from .. import cases
from .common import NUMBER, OPTIONS, Group, Make, by_precision, leaf, make
from .other_rules import Adadelta, Adamax, Lion, RAdam, Rprop

pytestmark = pytest.mark.cpu  # in C

COUNTED: list[tuple[str, Make, Group]] = [
    *[(str(case), case.ours, {}) for case in cases.CASES],
    *[
        (f"{kind.__name__},{options}", partial(make, kind), options)
        for kind in (Adadelta, Adamax, Rprop, Lion)  # RAdam decides by the step
        for options in OPTIONS[kind]
    ],
]
COUNTS = [1.0, 2.0, 3.0, 10.0, 1000.0, 100_000.0]


def in_c(forms: Sequence[tuple[Any, Any, bool]], folder: Path) -> list[tuple[Group, Any]]:
    """Scalars of optimizers as one library computes them, from a count and options."""
    lines = ["#include <cmath>", "#include <cstdint>", "#include <cstring>", "using namespace std;"]
    lines += ["#define INLINE static inline"]
    lines += [Path(_kernels.__file__).with_name("kernel_types.h").read_text(encoding="utf-8")]
    traced = []
    for i, (scalars, form, counts) in enumerate(forms):
        results, text = _kernels.trace_scalars(scalars, form, counts, f"case_{i}")
        traced.append(results)
        lines += ["#undef OPTIONS", "#undef COUNTS", f"namespace case_{i} {{", *text, "}"]
        lines += [f'extern "C" void at_{i}(double t, const int64_t* options, double* numbers) {{']
        lines += [f"  case_{i}::numbers_at(t, options, numbers);", "}"]
    source, library = folder / "scalars.cpp", folder / "scalars.so"
    source.write_text("\n".join(lines), encoding="utf-8")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
    subprocess.run([*require_compiler(), *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    functions: list[tuple[Group, Any]] = []
    for i, results in enumerate(traced):
        function = getattr(loaded, f"at_{i}")
        function.argtypes = [ctypes.c_double, ctypes.c_void_p, ctypes.c_void_p]
        functions.append((results, function))
    return functions


def evaluate(results: Group, function: Any, t: float, words: list[int]) -> Group:
    options, numbers = array("q", [*words, 0]), array("d", [math.nan] * (len(results) + 1))
    function(t, options.buffer_info()[0], numbers.buffer_info()[0])
    values = iter(numbers)
    return {
        name: value if value is None or isinstance(value, bool) else next(values)
        for name, value in results.items()
    }


def to_the_last_bit(scalars: Group) -> Group:
    return {
        name: value if value is None or isinstance(value, bool) else float(value).hex()
        for name, value in scalars.items()
    }


def test_scalars_in_c_are_those_in_python(tmp_path: Path) -> None:
    made = [make_one([leaf(1, 2)], **options) for _, make_one, options in COUNTED]
    given = [_kernels.options_of(optimizer.param_groups[0]) for optimizer in made]
    functions = in_c(
        [(o.scalars, form, o.counts_steps) for o, (form, _) in zip(made, given, strict=True)],
        tmp_path,
    )
    for (name, *_), optimizer, (_, words), (results, function) in zip(
        COUNTED, made, given, functions, strict=True
    ):
        scalars: Callable[..., Group] = optimizer.scalars
        for t in COUNTS:
            expected = scalars(t if optimizer.counts_steps else None, optimizer.param_groups[0])
            computed = evaluate(results, function, t, words)
            assert to_the_last_bit(computed) == to_the_last_bit(expected), f"{name} at step {t}"


TENSORS: list[tuple[Make, Group, list[str]]] = [
    (scratch.ScratchSGD, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
    (scratch.ScratchAdaGrad, {"lr": 0.3, "lr_decay": 0.01}, ["lr"]),
    (scratch.ScratchRMSProp, {"lr": 0.3, "alpha": 0.7}, ["lr"]),
    (scratch.ScratchAdam, {"lr": 0.3}, ["lr"]),
    (scratch.ScratchAdam, {"lr": 0.3, "betas": (0.7, 0.9)}, ["betas"]),
    (scratch.ScratchAdam, {"lr": 0.3, "betas": (0.7, 0.9)}, ["lr", "betas"]),
    (scratch.ScratchAdamW, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
    (Adamax, {"lr": 0.3}, ["lr"]),
    (Lion, {"lr": 0.3, "weight_decay": 0.1}, ["lr"]),
]


def each(value: Any, change: Callable[[Any], Any]) -> Any:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


@by_precision
def test_scalars_in_c_round_as_options_that_are_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    made, forms, given = [], [], []
    for make_one, options, names in TENSORS:
        tensors = {n: each(options[n], partial(torch.tensor, dtype=dtype)) for n in names}
        optimizer = make_one([leaf(1, 2)], **(options | tensors))
        # Only on a device do options stay tensors. Meta tensors stay so, too; their addresses are
        # zero, and those of the true ones are put in.
        elsewhere = {n: each(value, lambda t: t.to("meta")) for n, value in tensors.items()}
        form, words = _kernels.options_of(optimizer.param_groups[0] | elsewhere)
        addresses: list[int] = []
        for name in optimizer.param_groups[0]:
            value = tensors.get(name, ())
            addresses += map(Tensor.data_ptr, value if isinstance(value, tuple) else (value,))
        assert words.count(0) == len(addresses) > 0
        remaining = iter(addresses)
        made.append(optimizer)
        given.append([next(remaining) if word == 0 else word for word in words])
        forms.append((optimizer.scalars, form, optimizer.counts_steps))
    for (*_, names), optimizer, words, (results, function) in zip(
        TENSORS, made, given, in_c(forms, tmp_path), strict=True
    ):
        scalars: Callable[..., Group] = optimizer.scalars
        for t in COUNTS:
            expected = scalars(t if optimizer.counts_steps else None, optimizer.param_groups[0])
            computed = evaluate(results, function, t, words)
            if "betas" not in names:
                assert to_the_last_bit(computed) == to_the_last_bit(expected), (optimizer, t)
                continue
            # torch's power of a tensor is SLEEF's, not that of the C library: 1 ulp.
            ulp = 2 * torch.finfo(dtype).eps
            assert computed.keys() == expected.keys()
            for name, value in expected.items():
                own = value if value is None else pytest.approx(float(value), rel=ulp)
                assert computed[name] == own, (optimizer, t, name)


def test_scalars_that_decide_by_the_step_cannot_be_counted_on_a_device() -> None:
    ours = RAdam([leaf(1, 2)])
    form, _ = _kernels.options_of(ours.param_groups[0])
    with pytest.raises(TypeError, match=f"{NUMBER} of radam"):
        _kernels.trace_scalars(ours.scalars, form, True, "radam")
