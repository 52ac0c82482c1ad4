"""What options may be: numbers in their range, flags that agree, names that are known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor

Group = dict[str, Any]

FLAGS = ("nesterov", "centered", "amsgrad", "maximize", "foreach", "capturable", "differentiable",
         "fused")  # fmt: skip


def check_numbers(options: Group, *names: str) -> None:
    """Refuse, in torch's words, options that are not numbers ≥ 0.

    Raises:
        TypeError: something else than a number.
        ValueError: a negative or NaN value, or a tensor `lr` of more than one element.
    """
    in_words = {"lr": "learning rate", "eps": "epsilon value"}
    for name in names:
        value = options[name]
        if name == "lr" and isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not is_at_least_zero(name, value):
            raise ValueError(f"Invalid {in_words.get(name, f'{name} value')}: {value}")


def is_at_least_zero(name: str, value: Any) -> bool:
    """Whether an option is a number ≥ 0.

    Raises:
        TypeError: it is no number.
    """
    try:
        return bool(value >= 0.0)
    except TypeError as problem:
        raise TypeError(
            f"{name} must be a number or a tensor of one element, but is "
            + (f"the string {value!r}: write it without quotes, in YAML with a decimal point "
               "(1.0e-3)" if isinstance(value, str) else repr(value))
        ) from problem  # fmt: skip


def check_flags(options: Group) -> None:
    """Refuse flags that are strings, of which ``"False"`` would count as true.

    Raises:
        TypeError: a flag is a string.
    """
    for name in FLAGS:
        if isinstance(options.get(name), str):
            raise TypeError(f"{name} must be True or False, but is the string {options[name]!r}")


def check_contradictions(options: Group) -> None:
    """Refuse, in torch's words, options that contradict each other.

    Raises:
        RuntimeError: `fused` stands beside `differentiable` or `foreach`.
    """
    if options.get("fused") and options.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`")
    if options.get("fused") and options.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def meant_by(name: str, options: Iterable[str]) -> str | None:
    """The option that a name looks like: misspelt, shortened, or spelt out (`learning_rate`)."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|[-_ ]+", "_", name).strip("_").lower().split("_")

    def initials(words: list[str]) -> str:
        return "".join(word[:1] for word in words)

    def looks_alike(option: str) -> bool:
        own = option.split("_")
        if "".join(own) == "".join(parts) or option == initials(parts):
            return True
        if len(own) != len(parts):  # `lr_scale` is a name of its own
            return len(parts) == 1 and parts[0] == initials(own)
        longer = len(parts) == 1 and parts[0].startswith(option)
        pairs = zip(own, parts, strict=True)
        return longer or all(SequenceMatcher(None, *pair).ratio() >= 0.8 for pair in pairs)

    return next(filter(looks_alike, options), None)
