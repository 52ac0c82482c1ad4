"""What options may be: numbers in their range, flags that agree, names that are known."""

from __future__ import annotations

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

    def initials(words: str) -> str:
        return "".join(word[:1] for word in words.split("_"))

    def looks_alike(option: str) -> bool:
        if f"_{option}_" in f"_{name}_":  # `lr_scale` is a name of its own
            return False
        shortened = option == initials(name) or ("_" in option and name == initials(option))
        longer = name.startswith(option) and "_" not in name
        return shortened or longer or SequenceMatcher(None, option, name).ratio() >= 0.75

    return next(filter(looks_alike, options), None)
