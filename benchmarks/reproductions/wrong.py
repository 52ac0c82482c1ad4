"""Wrong optimizers: what is easily got wrong in an optimizer, each as a class of its own.

A published figure says something of an optimizer only if a wrong one fails to reproduce it. So each
figure is tried with those that are made here, and the table lists the ones that it rejects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.variants import AdaGradEpsInside, AdamEpsInside, AdamUncorrected
from torch_scratch_optim import (
    ScratchAdaGrad,
    ScratchAdam,
    ScratchMomentum,
    ScratchOptimizer,
    ScratchSGD,
)

Group = dict[str, Any]
Optimizer = type[ScratchOptimizer]
Replacement = Mapping[Optimizer, Optimizer]  # of right classes by wrong ones


def with_options(optimizer: Optimizer, change: Callable[[Group], Group]) -> Optimizer:
    """The optimizer, which takes other options than it is given."""

    class OtherOptions(optimizer):  # type: ignore[misc, valid-type]
        def scalars(self, t: Any, group: Group) -> dict[str, Any]:
            scalars: dict[str, Any] = super().scalars(t, group | change(group))
            return scalars

    return OtherOptions


def decayed_after(optimizer: Optimizer) -> Optimizer:
    """The optimizer with θ ← (1 − γλ) θ after each step, and no λθ in the gradient."""

    class DecayedAfter(optimizer):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            for group in self.param_groups:
                group |= {"weight_decay": 0, "decay_after": group["weight_decay"]}

        def scalars(self, t: Any, group: Group) -> dict[str, Any]:
            factor = 1 - group["lr"] * group["decay_after"]
            return {**super().scalars(t, group), "factor_after": factor}

        @staticmethod
        def rule(p, factor_after, **others):  # type: ignore[no-untyped-def]
            optimizer.rule(p=p, **others)
            p.mul_(factor_after)

    return DecayedAfter


def without(optimizer: Optimizer, option: str) -> Optimizer:
    """The optimizer with an option that is always 0."""

    class Without(optimizer):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)
            for group in self.param_groups:
                group[option] = 0

    return Without


def lower_momentum(group: Group) -> Group:
    beta1, beta2 = group["betas"]
    return {"betas": (beta1 - 0.1, beta2)}


NEVER_TRAINED = "never trained"  # the weakest of all: what passes with it is no training
ALL: tuple[Optimizer, ...] = (ScratchSGD, ScratchMomentum, ScratchAdaGrad, ScratchAdam)
WRONG: dict[str, Replacement] = {
    "ε inside the root": {ScratchAdam: AdamEpsInside, ScratchAdaGrad: AdaGradEpsInside},
    "no bias correction": {ScratchAdam: AdamUncorrected},
    "momentum 0.1 lower": {
        ScratchAdam: with_options(ScratchAdam, lower_momentum),
        ScratchMomentum: with_options(
            ScratchMomentum, lambda group: {"momentum": group["momentum"] - 0.1}
        ),
    },
    "momentum dampened": {
        ScratchMomentum: with_options(
            ScratchMomentum, lambda group: {"dampening": group["momentum"]}
        )
    },
    # Of plain SGD this is right but for a term of γ²λ.
    "decay after the step": {
        right: decayed_after(right) for right in (ScratchMomentum, ScratchAdaGrad, ScratchAdam)
    },
    "no weight decay": {right: without(right, "weight_decay") for right in ALL},
    "learning rate × 1.5": {
        right: with_options(right, lambda group: {"lr": 1.5 * group["lr"]}) for right in ALL
    },
    NEVER_TRAINED: {right: without(right, "lr") for right in ALL},
}
OF_DECAY = ("decay after the step", "no weight decay")


def wrong_for(optimizers: Sequence[Optimizer], decays: bool) -> list[str]:
    """The names of those that differ from the right ones where these are used."""
    return [
        name
        for name, replaced in WRONG.items()
        if replaced.keys() & set(optimizers) and (decays or name not in OF_DECAY)
    ]
