"""Optimizers that elsewhere go by the same names: what a real difference looks like.

Each is one of ours with another rule or other scalars; options, state and engines stay.
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.common.option_cases import Options
from torch_scratch_optim import (
    ScratchAdaGrad,
    ScratchAdam,
    ScratchAdamW,
    ScratchMomentum,
    ScratchOptimizer,
    ScratchRMSProp,
    ScratchSGD,
)
from torch_scratch_optim.sgd import sgd
from torch_scratch_optim.tensor_likes import TensorLike


def adagrad_eps_inside(
    p: TensorLike,
    g: TensorLike,
    s: TensorLike,
    *,
    step_size: float,
    eps: float,
) -> None:
    s.addcmul_(g, g)
    p.addcdiv_(g, s.add(eps).sqrt_(), value=-step_size)  # θ ← θ − γₜ g / √(s + ε)


def rmsprop_eps_inside(
    p: TensorLike,
    g: TensorLike,
    v: TensorLike,
    b: TensorLike | None = None,
    g_avg: TensorLike | None = None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> None:
    v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
    if g_avg is None:
        denom = v.add(eps).sqrt_()  # √(v + ε)
    else:
        g_avg.lerp_(g, 1 - alpha)
        denom = v.addcmul(g_avg, g_avg, value=-1).add_(eps).sqrt_()  # √(v − ḡ² + ε)
    if b is None:
        p.addcdiv_(g, denom, value=-lr)
    else:
        b.mul_(momentum).addcdiv_(g, denom)
        p.add_(b, alpha=-lr)


def adam_eps_inside(
    p: TensorLike,
    g: TensorLike,
    m: TensorLike,
    v: TensorLike,
    v_max: TensorLike | None = None,
    *,
    step_size: float,
    beta1: float,
    beta2: float,
    bias_correction2_sqrt: float,
    eps: float,
    decay_factor: float | None,
) -> None:
    if decay_factor is not None:
        p.mul_(decay_factor)
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    if v_max is not None:
        v = v_max.clamp_min_(v)
    denom = v.div(bias_correction2_sqrt**2).add_(eps).sqrt_()  # √(v̂ + ε)
    p.addcdiv_(m, denom, value=-step_size)


def sgd_averaging(
    p: TensorLike,
    g: TensorLike,
    b: TensorLike | None = None,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    first: bool,
) -> None:
    if b is not None:
        b.lerp_(g, 1 - momentum)  # b ← μb + (1 − μ) g, from b = 0
        g = g.add(b, alpha=momentum) if nesterov else b
    p.add_(g, alpha=-lr)


def sgd_lr_in_velocity(
    p: TensorLike,
    g: TensorLike,
    b: TensorLike | None = None,
    *,
    lr: float,
    **others: Any,
) -> None:
    sgd(p, g.mul(lr), b, lr=1, **others)  # b ← μb + (1 − τ) γg, θ ← θ − b


class AdaGradEpsInside(ScratchAdaGrad):
    rule = staticmethod(adagrad_eps_inside)


class RMSPropEpsInside(ScratchRMSProp):
    rule = staticmethod(rmsprop_eps_inside)


class AdamEpsInside(ScratchAdam):
    rule = staticmethod(adam_eps_inside)


class AdamWEpsInside(ScratchAdamW):
    rule = staticmethod(adam_eps_inside)


class AdamUncorrected(ScratchAdam):
    """Adam without bias correction: θ ← θ − γ m / (√v + ε)."""

    def scalars(self, t: Any, group: dict[str, Any]) -> dict[str, Any]:
        return super().scalars(math.inf, group)  # βᵗ = 0: nothing is left to correct


class SGDAveraging(ScratchSGD):
    rule = staticmethod(sgd_averaging)


class MomentumAveraging(ScratchMomentum):
    rule = staticmethod(sgd_averaging)


class SGDLrInVelocity(ScratchSGD):
    rule = staticmethod(sgd_lr_in_velocity)


class MomentumLrInVelocity(ScratchMomentum):
    rule = staticmethod(sgd_lr_in_velocity)


EPS_INSIDE, AVERAGING, LR_IN_VELOCITY = "eps-inside", "averaging", "lr-in-velocity"
VARIANTS: dict[str, dict[str, type[ScratchOptimizer]]] = {
    EPS_INSIDE: {
        "adagrad": AdaGradEpsInside,
        "rmsprop": RMSPropEpsInside,
        "adam": AdamEpsInside,
        "adamw": AdamWEpsInside,
    },
    AVERAGING: {"sgd": SGDAveraging, "momentum": MomentumAveraging},
    LR_IN_VELOCITY: {"sgd": SGDLrInVelocity, "momentum": MomentumLrInVelocity},
}


def variant_of(name: str, optimizer: str, options: Options) -> type[ScratchOptimizer] | None:
    """The variant of an optimizer, or None where there is none that differs."""
    if optimizer == "sgd" and not options.get("momentum"):
        return None
    return VARIANTS[name].get(optimizer)
