"""Symbols: a rule that is run on them writes its own kernel.

A :class:`TensorSymbol` stands for one element of a tensor, a :class:`NumberSymbol` for a number
that is known only when the kernel runs. Both record what is asked of them, as statements of a
:class:`Trace`. :data:`OPERATIONS` says how each target spells an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, NoReturn

import torch

#: Each operation: its arguments, and its value in C, in the working type T. Where the targets
#: differ, each rounds as torch's own loop does on that device.
OPERATIONS: dict[str, tuple[str, str | dict[str, str]]] = {
    "neg": ("x", "-x"),
    "abs": ("x", "fabs(x)"),
    "sign": ("x", "(T)((x > 0) - (x < 0))"),
    "sqrt": ("x", "sqrt(x)"),
    "rsqrt": ("x", "1 / sqrt(x)"),
    "reciprocal": ("x", "1 / x"),
    "exp": ("x", "exp(x)"),
    "expm1": ("x", "expm1(x)"),
    "log": ("x", "log(x)"),
    "log1p": ("x", "log1p(x)"),
    "tanh": ("x", "tanh(x)"),
    "floor": ("x", "floor(x)"),
    "ceil": ("x", "ceil(x)"),
    "round": ("x", "rint(x)"),
    "trunc": ("x", "trunc(x)"),
    "zero": ("x", "0"),
    "copy": ("x, other", "other"),
    "add": ("x, other, alpha=1", "fma(alpha, other, x)"),
    "sub": ("x, other, alpha=1", "fma(-alpha, other, x)"),
    "mul": ("x, other", "x * other"),
    "div": ("x, other", "x / other"),
    # torch multiplies by the reciprocal of a number on CUDA.
    "div_number": ("x, other", {"cpu": "x / other", "cuda": "x * (T)(1.0 / (double)other)"}),
    "pow": ("x, exponent", "power(x, exponent)"),
    "maximum": ("x, other", "x < other || other != other ? other : x"),
    "minimum": ("x, other", "x > other || other != other ? other : x"),
    "clamp_min": ("x, min", "x < min || min != min ? min : x"),
    "clamp_max": ("x, max", "x > max || max != max ? max : x"),
    "lerp": (
        "x, end, weight",
        {
            "cpu": "fabs(weight) < T(0.5) ? fma(weight, end - x, x) : fma(weight - 1, end - x, end)",
            "cuda": "fabs(weight) < T(0.5) ? fma(weight, end - x, x)"
            " : fma(-(end - x), 1 - weight, end)",
        },
    ),
    "addcmul": (
        "x, a, b, value=1",
        {
            "cpu": "fma(value * a, b, x)",
            "cuda": "value == 1 ? fma(a, b, x) : fma(value, a * b, x)",
        },
    ),
    "addcdiv": (
        "x, a, b, value=1",
        {"cpu": "x + value * a / b", "cuda": "fma(value, a / b, x)"},
    ),
}

C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
HALF = (torch.float16, torch.bfloat16)


def working_type(dtypes: Iterable[torch.dtype]) -> str:
    """The C type in which tensors of such dtypes meet: float serves half precision, too."""
    return "double" if torch.float64 in dtypes else "float"


class Trace:
    """What a rule does to one element, as statements of C.

    Args:
        rule: the rule's name, for errors.
        target: ``"cpu"`` or ``"cuda"``.
        rounded: round each result to its dtype, as torch's loop does in half precision; otherwise
            half precision is computed in float32 and rounded once, where it is stored.
    """

    def __init__(self, rule: str, target: str, rounded: bool = False) -> None:
        self.rule, self.target, self.rounded = rule, target, rounded
        self.statements: list[str] = []
        self.operations: set[str] = set()
        self.written: dict[str, TensorSymbol] = {}

    def assign(self, c_type: str, value: str) -> str:
        name = f"v{len(self.statements)}"
        self.statements.append(f"const {c_type} {name} = {value};")
        return name

    def definitions(self) -> list[str]:
        """The operations that were used, as C functions."""
        lines = []
        for operation in sorted(self.operations):
            arguments, spelling = OPERATIONS[operation]
            body = spelling if isinstance(spelling, str) else spelling[self.target]
            parameters = ", ".join(f"T {a.strip().split('=')[0]}" for a in arguments.split(","))
            lines.append(
                f"template <typename T> INLINE T {operation}_({parameters}) {{ return {body}; }}"
            )
        return lines


class NumberSymbol:
    """A number that is known when the kernel runs.

    Arithmetic is in double precision, as Python's, or in that of a tensor without dimensions, as
    torch's.

    Args:
        trace: where its arithmetic is recorded.
        name: its value in C.
        nonzero: it is known not to be zero, so that ``weight_decay or None`` has an answer.
        tensor: the C type of the tensor that it is, if it is one.
    """

    def __init__(
        self, trace: Trace, name: str, nonzero: bool = False, tensor: str | None = None
    ) -> None:
        self._trace, self._name, self._nonzero, self._tensor = trace, name, nonzero, tensor

    def _of(self, form: str, *operands: Any) -> NumberSymbol:
        symbols = [o for o in operands if isinstance(o, NumberSymbol)]
        tensors = {symbol._tensor for symbol in symbols} - {None}
        tensor = max(tensors, key=("float", "double").index) if tensors else None
        names = [
            f"({tensor or 'double'}){o._name if isinstance(o, NumberSymbol) else literal(o)}"
            for o in operands
        ]
        name = self._trace.assign(tensor or "double", form.format(*names))
        return NumberSymbol(self._trace, name, tensor=tensor)

    def __add__(self, other: Any) -> NumberSymbol:
        return self._of("{} + {}", self, other)

    def __radd__(self, other: Any) -> NumberSymbol:
        return self._of("{} + {}", other, self)

    def __sub__(self, other: Any) -> NumberSymbol:
        return self._of("{} - {}", self, other)

    def __rsub__(self, other: Any) -> NumberSymbol:
        return self._of("{} - {}", other, self)

    def __mul__(self, other: Any) -> NumberSymbol:
        return self._of("{} * {}", self, other)

    def __rmul__(self, other: Any) -> NumberSymbol:
        return self._of("{} * {}", other, self)

    def __truediv__(self, other: Any) -> NumberSymbol:
        return self._of("{} / {}", self, other)

    def __rtruediv__(self, other: Any) -> NumberSymbol:
        return self._of("{} / {}", other, self)

    def __pow__(self, other: Any) -> NumberSymbol:
        return self._of("pow({}, {})", self, other)

    def __rpow__(self, other: Any) -> NumberSymbol:
        return self._of("pow({}, {})", other, self)

    def __neg__(self) -> NumberSymbol:
        return self._of("-{}", self)

    def __bool__(self) -> bool:
        return self._nonzero or self._refuse("bool()")

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(
            f"{what} of a number that is known only when the kernel of {self._trace.rule} runs: "
            "compute with + - * / and ** (** 0.5 for a root), and decide on the host"
        )


def _refusal(word: str, shown: str) -> Callable[..., NoReturn]:
    def refuse(self: NumberSymbol, *_: Any) -> NoReturn:
        self._refuse(shown)

    refuse.__name__ = word
    return refuse


for _word, _shown in {
    "__eq__": "==", "__ne__": "!=", "__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">=",
    "__float__": "float()", "__int__": "int()", "__index__": "an index", "__hash__": "hash()",
    "__abs__": "abs()", "__round__": "round()", "__floordiv__": "//", "__mod__": "%",
    "__divmod__": "divmod()", "__trunc__": "int()", "__iter__": "iteration",
}.items():  # fmt: skip
    setattr(NumberSymbol, _word, _refusal(_word, _shown))


def literal(number: float) -> str:
    """A number as C spells it, to the last bit."""
    value = float(number)
    special = {"inf": "(1.0 / 0.0)", "-inf": "(-1.0 / 0.0)", "nan": "(0.0 / 0.0)"}
    return special.get(repr(value), f"({value!r})")


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

    def __getattr__(self, word: str) -> Callable[..., TensorSymbol]:
        operation = word.removesuffix("_")
        if word.startswith("_") or operation not in OPERATIONS or operation == "div_number":
            known = ", ".join(sorted(OPERATIONS.keys() - {"div_number"}))
            raise AttributeError(
                f"{self._trace.rule} uses '{word}', which has no spelling in a kernel; "
                f"the operations are {known}, each also in place"
            )

        def method(*others: Any, **named: Any) -> TensorSymbol:
            return self._apply(operation, word != operation, others, named)

        return method

    def _apply(
        self, operation: str, in_place: bool, others: tuple[Any, ...], named: dict[str, Any]
    ) -> TensorSymbol:
        trace = self._trace
        if in_place and self._column == "g":
            raise TypeError(f"{trace.rule} writes its gradient ({operation}_), which is its user's")
        if operation == "div" and not isinstance(others[0], TensorSymbol):
            operation = "div_number"
        operands = [self, *self._bind(operation, others, named)]
        tensors = [o._dtype for o in operands if isinstance(o, TensorSymbol)]
        c_type = working_type(tensors)
        trace.operations.add(operation)
        values = ", ".join(literal(o) if isinstance(o, (int, float)) else o._name for o in operands)
        dtype = self._dtype if in_place else reduce(torch.promote_types, tensors)
        value = f"{operation}_<{c_type}>({values})"
        if trace.rounded and dtype in HALF:
            value = f"load(to_{C_TYPES[dtype]}({value}))"
        name = trace.assign(working_type((dtype,)), value)
        if not in_place:
            return TensorSymbol(trace, name, dtype)
        self._name = name
        if self._column is not None:
            trace.written[self._column] = self
        return self

    def _bind(self, operation: str, others: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        _, *arguments = (a.strip().split("=") for a in OPERATIONS[operation][0].split(","))
        given = dict(zip((a[0] for a in arguments), others, strict=False)) | named
        missing = [a[0] for a in arguments if len(a) == 1 and a[0] not in given]
        if (
            missing
            or len(given) != len(others) + len(named)
            or given.keys() - {a[0] for a in arguments}
        ):
            raise TypeError(
                f"{self._trace.rule}: {operation}({OPERATIONS[operation][0]}) was given "
                f"{len(others)} positional arguments and {sorted(named)}"
            )
        return [given.get(name, *map(float, default)) for name, *default in arguments]
