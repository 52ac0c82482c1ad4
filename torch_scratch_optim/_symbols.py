"""Symbols: a rule that is run on them writes its own kernel.

A :class:`TensorSymbol` stands for one element of a tensor, a :class:`NumberSymbol` for a number
that is known only when the kernel runs. Both record operations as statements in C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from numbers import Real
from typing import Any

import torch

#: Each operation as C spells it; the arguments are named as those of the tensor method.
CPU: dict[str, Callable[..., str]] = {
    "neg": lambda x: f"-{x}",
    "abs": lambda x: f"fabs({x})",
    "sign": lambda x: f"({x} > 0) - ({x} < 0)",
    "sqrt": lambda x: f"sqrt({x})",
    "rsqrt": lambda x: f"1 / sqrt({x})",
    "reciprocal": lambda x: f"1 / {x}",
    "exp": lambda x: f"exp({x})",
    "log": lambda x: f"log({x})",
    "copy": lambda x, other: other,
    "add": lambda x, other, *, alpha="": (
        f"fma({alpha}, {other}, {x})" if alpha else f"{x} + {other}"
    ),
    "sub": lambda x, other, *, alpha="": (
        f"fma(-{alpha}, {other}, {x})" if alpha else f"{x} - {other}"
    ),
    "mul": lambda x, other: f"{x} * {other}",
    "div": lambda x, other: f"{x} / {other}",
    "div_number": lambda x, other: f"{x} / {other}",
    "pow": lambda x, exponent: f"pow({x}, {exponent})",
    "pow_number": lambda x, exponent: f"power({x}, {exponent})",
    "maximum": lambda x, other: f"{x} < {other} || {other} != {other} ? {other} : {x}",
    "minimum": lambda x, other: f"{x} > {other} || {other} != {other} ? {other} : {x}",
    "clamp_min": lambda x, min: f"{x} < {min} || {min} != {min} ? {min} : {x}",
    "clamp_max": lambda x, max: f"{x} > {max} || {max} != {max} ? {max} : {x}",
    "lerp": lambda x, end, weight: (
        f"fabs({weight}) < 0.5 ? fma({weight}, {end} - {x}, {x})"
        f" : fma({weight} - 1, {end} - {x}, {end})"
    ),
    "addcmul": lambda x, tensor1, tensor2, *, value="": (
        f"fma({value} * {tensor1}, {tensor2}, {x})" if value else f"fma({tensor1}, {tensor2}, {x})"
    ),
    "addcdiv": lambda x, tensor1, tensor2, *, value="": (
        f"{x} + {value} * {tensor1} / {tensor2}" if value else f"{x} + {tensor1} / {tensor2}"
    ),
}
#: Where the targets differ, each rounds as torch's own loop does on that device.
OPERATIONS = {
    "cpu": CPU,
    "cuda": CPU
    | {
        "div_number": lambda x, other: f"{x} * (decltype({x} + 0))(1.0 / (double){other})",
        "lerp": lambda x, end, weight: (
            f"fabs({weight}) < 0.5 ? fma({weight}, {end} - {x}, {x})"
            f" : fma(-({end} - {x}), 1 - {weight}, {end})"
        ),
        "addcmul": lambda x, tensor1, tensor2, *, value="": (
            f"{value} == 1 ? fma({tensor1}, {tensor2}, {x})"
            f" : fma({value}, {tensor1} * {tensor2}, {x})"
            if value
            else f"fma({tensor1}, {tensor2}, {x})"
        ),
        "addcdiv": lambda x, tensor1, tensor2, *, value="": (
            f"fma({value}, {tensor1} / {tensor2}, {x})" if value else f"{x} + {tensor1} / {tensor2}"
        ),
    },
}
C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
HALF = (torch.float16, torch.bfloat16)


def working_type(*dtypes: torch.dtype) -> str:
    """The C type that operations on such tensors compute in; float for half precision, too."""
    return "double" if torch.float64 in dtypes else "float"


class Trace:
    """The operations that symbols record.

    Args:
        rule: its name, for errors.
        target: ``"cpu"`` or ``"cuda"``.
        rounded: round each result to its dtype, as torch's loop does in half precision. Otherwise
            half precision is computed in float32 and rounded once, when it is stored.
    """

    def __init__(self, rule: str, target: str, rounded: bool = False) -> None:
        self.rule, self.operations, self.rounded = rule, OPERATIONS[target], rounded
        self.statements: list[str] = []
        self.written: dict[str, str] = {}  # columns, and the variable with what each becomes

    def assign(self, c_type: str, value: str) -> str:
        name = f"v{len(self.statements)}"
        self.statements.append(f"const {c_type} {name} = {value};")
        return name


class NumberSymbol:
    """A number that is known when the kernel runs. It computes in double precision, as Python does,
    or in the precision of a 0-d tensor, as torch does.

    Args:
        trace: records its operations.
        name: its value in C.
        nonzero: whether it is known not to be zero, so that ``weight_decay or None`` has a value.
        tensor: its C type, if it is a tensor.
    """

    def __init__(
        self, trace: Trace, name: str, nonzero: bool = False, tensor: str | None = None
    ) -> None:
        self._trace, self._name, self._nonzero, self._tensor = trace, name, nonzero, tensor
        self._c_type = tensor or "double"

    def _of(self, form: str, *operands: Any) -> NumberSymbol:
        if any(isinstance(o, TensorSymbol) for o in operands):
            self._refuse("an operator between a tensor and it, instead of a method of the tensor,")
        tensors = {getattr(o, "_tensor", None) for o in operands} - {None}
        c_type = "double" if "double" in tensors or not tensors else "float"
        name = self._trace.assign(c_type, form.format(*[value_in(c_type, o) for o in operands]))
        return NumberSymbol(self._trace, name, tensor=c_type if tensors else None)

    def __neg__(self) -> NumberSymbol:
        return self._of("-{}", self)

    def __bool__(self) -> bool:
        return self._nonzero or self._refuse("bool()")

    def _refuse(self, what: str) -> Any:
        raise TypeError(
            f"{what} of a number that is known only when the kernel of {self._trace.rule} runs: "
            "compute with + - * / and ** (** 0.5 for a root), and decide on the host"
        )


for _word, _form in {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "truediv": "{} / {}", "pow": "pow({}, {})"
}.items():  # fmt: skip
    setattr(NumberSymbol, f"__{_word}__", lambda self, other, f=_form: self._of(f, self, other))
    setattr(NumberSymbol, f"__r{_word}__", lambda self, other, f=_form: self._of(f, other, self))
for _word in [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "float",
    "int",
    "index",
    "hash",
    "abs",
    "round",
    "floordiv",
    "mod",
    "divmod",
    "iter",
]:
    setattr(NumberSymbol, f"__{_word}__", lambda self, *_, w=_word: self._refuse(f"{w}()"))


def value_in(c_type: str, value: Any) -> str:
    """A symbol or a number as a value of a C type, to the last bit."""
    if isinstance(value, (NumberSymbol, TensorSymbol)):
        return value._name if value._c_type == c_type else f"({c_type}){value._name}"
    if not isinstance(value, Real):
        raise TypeError(f"{value!r} is neither a tensor of the rule nor a number")
    number = repr(float(value))
    special = {"inf": "1.0 / 0.0", "-inf": "-1.0 / 0.0", "nan": "0.0 / 0.0"}
    return f"({c_type})({special.get(number, number)})"


class TensorSymbol:
    """One element of a tensor; it has the methods of :class:`torch.Tensor` that are in the table.

    Args:
        trace: where its operations are recorded.
        name: the C variable that holds its value.
        dtype: of the tensor.
        column: its name in the rule, if it is an argument; a result of an operation has none.
    """

    def __init__(
        self, trace: Trace, name: str, dtype: torch.dtype, column: str | None = None
    ) -> None:
        self._trace, self._name, self._dtype, self._column = trace, name, dtype, column
        self._c_type = working_type(dtype)

    def __getattr__(self, word: str) -> Callable[..., TensorSymbol]:
        operation = word.removesuffix("_")
        known = [name for name in self._trace.operations if not name.endswith("_number")]
        if operation not in known:
            raise AttributeError(
                f"{self._trace.rule} uses '{word}', which has no spelling in a kernel; "
                f"the operations are {', '.join(sorted(known))}, each also in place"
            )
        return lambda *others, **named: self._apply(operation, word != operation, others, named)

    def _apply(
        self, operation: str, in_place: bool, others: tuple[Any, ...], named: dict[str, Any]
    ) -> TensorSymbol:
        trace = self._trace
        if in_place and self._column == "g":
            raise TypeError(f"{trace.rule} writes its gradient ({operation}_), which is its user's")
        dtypes = [o._dtype for o in (self, *others, *named.values()) if isinstance(o, TensorSymbol)]
        if len(dtypes) == 1 and f"{operation}_number" in trace.operations:
            operation += "_number"
        c_type = working_type(*dtypes)
        try:
            value = trace.operations[operation](
                *[value_in(c_type, o) for o in (self, *others)],
                **{name: value_in(c_type, o) for name, o in named.items()},
            )
        except TypeError as error:
            raise TypeError(f"{trace.rule}: wrong arguments of {operation}: {error}") from None
        dtype = self._dtype if in_place else reduce(torch.promote_types, dtypes)
        if trace.rounded and dtype in HALF:
            value = f"load(to_{C_TYPES[dtype]}({value}))"
        name = trace.assign(working_type(dtype), value)
        if not in_place:
            return TensorSymbol(trace, name, dtype)
        self._name = name
        if self._column is not None:
            trace.written[self._column] = name
        return self
