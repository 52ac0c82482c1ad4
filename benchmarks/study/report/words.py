"""How numbers are written: per cent, intervals, infinities, and unknown ones."""

from __future__ import annotations

import math
from typing import Any

UNKNOWN = "-"
INFINITE = "∞"


def percent(share: float | None, digits: int = 2, unit: str = " %") -> str:
    return number(None if share is None else 100 * share, f".{digits}f", unit)


def number(value: float | None, form: str, unit: str = "") -> str:
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return INFINITE
    text = format(value, form)
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−") + unit


def with_interval(facts: dict[str, Any], digits: int = 2) -> str:
    """A share in per cent with its interval, if there is one: 97.55 (97.41 … 97.69)."""
    mean = percent(facts["mean"], digits, "")
    if facts["low"] is None:
        return mean
    low, high = (percent(facts[bound], digits, "") for bound in ("low", "high"))
    return f"{mean} ({low}\u00a0…\u00a0{high})"


def p_value(p: float | None) -> str:
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def options_of(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_option(value)}" for name, value in options.items())


def setting_of(entry: dict[str, Any]) -> str:
    """The learning rate, and what else is not its default."""
    return ", ".join(filter(None, [f"lr\u00a0{entry['lr']:.3g}", options_of(entry["options"])]))


def _option(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
