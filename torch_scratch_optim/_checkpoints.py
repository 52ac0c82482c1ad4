"""Whether a step can follow when a checkpoint has been loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import StateDict

from ._options import is_at_least_zero
from ._tensors import name_of

if TYPE_CHECKING:
    from .optimizer import ScratchOptimizer


def check_state_dict(optimizer: ScratchOptimizer, loaded: StateDict) -> None:
    """Refuse a checkpoint with which the next step would fail.

    Raises:
        ValueError: options or state are missing, or state has another shape than its parameter.
        TypeError: an option is no number.
    """
    name = type(optimizer).__name__
    if absent := [part for part in ("state", "param_groups") if part not in loaded]:
        raise ValueError(
            f"loaded state dict has no {_listed(absent)}, but {_listed(loaded)}: if it is a "
            "whole checkpoint, load the optimizer's part of it"
        )
    groups, saved = optimizer.param_groups, loaded["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved]:
        return  # torch has words for that
    for number, (group, own) in enumerate(zip(groups, saved, strict=True)):
        options = optimizer.added_options | own
        numbers = {k for k, v in optimizer.defaults.items() if type(v) in (int, float)}
        for option in numbers & options.keys():
            is_at_least_zero(option, options[option])  # or no number, and refused
        try:
            columns = optimizer.columns(options)
            optimizer.scalars(1.0 if optimizer.counts_steps else None, options)
        except KeyError as absent_option:
            raise ValueError(
                f"loaded state dict is of another optimizer: group {number} has no option "
                f"{absent_option}, which {name} needs, but "
                + _listed(option for option in own if option != "params")
            ) from None
        if "weight_decay" in optimizer.defaults and "weight_decay" not in options:
            raise ValueError(f"loaded state dict lacks the option 'weight_decay' in group {number}")
        needed = [*columns.values(), *["step"] * optimizer.counts_steps]
        for p, index in zip(group["params"], own["params"], strict=True):
            state = loaded["state"].get(index) or {}
            if state and optimizer.counts_steps and None in map(state.get, needed):
                raise ValueError(
                    f"loaded state dict has {_listed(state)} for {name_of(optimizer, p, group)}, "
                    f"but {name} needs {_listed(needed)}"
                )
            for column in columns.values():
                t = state.get(column)
                if t is not None and not isinstance(t, Tensor):
                    raise ValueError(
                        f"loaded state dict has {t!r} as {column!r} of "
                        f"{name_of(optimizer, p, group)}, which must be a tensor"
                    )
                if t is not None and not is_lazy(p) and t.shape != p.shape:
                    raise ValueError(
                        f"loaded state dict has {column!r} of the shape {list(t.shape)} for "
                        f"{name_of(optimizer, p, group)}, which has the shape {list(p.shape)}"
                    )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
