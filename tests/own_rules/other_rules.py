"""Optimizers that the package does not have, written as its users would write them.

Each is a rule of a few lines, spelt as torch computes it. NAdam is not here: it keeps a running
product of its momenta, one number for each parameter, rounded to float32 at every step. State of a
rule has the shape of its parameter, and no formula in t gives the bits of that product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torch_scratch_optim import ScratchOptimizer
from torch_scratch_optim.tensor_likes import TensorLike

Group = dict[str, Any]


def with_fused(defaults: Group, fused: bool | None) -> Group:
    """torch has no `fused` here, so the groups know it only if it was asked for."""
    return defaults if fused is None else defaults | {"fused": fused}


def adadelta(
    p: TensorLike, g: TensorLike, v: TensorLike, u: TensorLike, *, lr: float, rho: float, eps: float
) -> None:
    """One step of Adadelta (Zeiler, 2012)."""
    v.mul_(rho).addcmul_(g, g, value=1 - rho)  # v ← ρv + (1 − ρ) g²
    d = u.add(eps).sqrt_().div_(v.add(eps).sqrt_()).mul_(g)  # d ← √(u + ε) / √(v + ε) g
    u.mul_(rho).addcmul_(d, d, value=1 - rho)  # u ← ρu + (1 − ρ) d²
    p.add_(d, alpha=-lr)  # θ ← θ − γd


class Adadelta(ScratchOptimizer):
    """A drop-in for :class:`torch.optim.Adadelta`."""

    rule = staticmethod(adadelta)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, with_fused(defaults, fused))

    def columns(self, group: Group) -> dict[str, str]:
        return {"v": "square_avg", "u": "acc_delta"}

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        return {"lr": group["lr"], "rho": group["rho"], "eps": group["eps"]}


def adamax(
    p: TensorLike,
    g: TensorLike,
    m: TensorLike,
    u: TensorLike,
    *,
    step_size: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One step of Adamax (Kingma and Ba, 2015, algorithm 2)."""
    m.lerp_(g, 1 - beta1)  # m ← β₁m + (1 − β₁) g
    u.mul_(beta2).clamp_min_(g.abs().add_(eps))  # u ← max(β₂u, |g| + ε)
    p.addcdiv_(m, u, value=-step_size)  # θ ← θ − γ / (1 − β₁ᵗ) m / u


class Adamax(ScratchOptimizer):
    """A drop-in for :class:`torch.optim.Adamax`."""

    rule = staticmethod(adamax)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, with_fused(defaults, fused))

    def columns(self, group: Group) -> dict[str, str]:
        return {"m": "exp_avg", "u": "exp_inf"}

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            "step_size": group["lr"] / (1 - beta1**t),
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
        }


def radam(
    p: TensorLike,
    g: TensorLike,
    m: TensorLike,
    v: TensorLike,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay_factor: float | None,
    correction1: float,
    root_correction2: float,
    rectification: float | None,
) -> None:
    """One step of RAdam (Liu et al., 2020)."""
    if decay_factor is not None:
        p.mul_(decay_factor)  # θ ← (1 − γλ) θ
    m.lerp_(g, 1 - beta1)  # m ← β₁m + (1 − β₁) g
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v ← β₂v + (1 − β₂) g²
    d = m.div(correction1).mul_(lr)  # d ← γ m̂
    if rectification is not None:  # d ← r d √(1 − β₂ᵗ) / (√v + ε)    once ρₜ > 5
        d.mul_(v.sqrt().add_(eps).reciprocal_().mul_(root_correction2)).mul_(rectification)
    p.add_(d, alpha=-1)  # θ ← θ − d


class RAdam(ScratchOptimizer):
    """A drop-in for :class:`torch.optim.RAdam`."""

    rule = staticmethod(radam)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        super().__init__(params, with_fused(defaults, fused))

    def columns(self, group: Group) -> dict[str, str]:
        return {"m": "exp_avg", "v": "exp_avg_sq"}

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        correction2 = 1 - beta2**t
        most = 2 / (1 - beta2) - 1  # ρ∞
        length = most - 2 * t * (beta2**t) / correction2  # ρₜ
        rectification = None  # before the variance is tractable
        if length > 5:
            ratio = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
            rectification = ratio**0.5
        return {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "decay_factor": 1 - lr * decay if group["decoupled_weight_decay"] and decay else None,
            "correction1": 1 - beta1**t,
            "root_correction2": correction2**0.5,
            "rectification": rectification,
        }


def rprop(
    p: TensorLike,
    g: TensorLike,
    before: TensorLike,
    d: TensorLike,
    *,
    decay_factor: float,
    grow: float,
    least: float,
    most: float,
) -> None:
    """One step of Rprop (Riedmiller and Braun, 1993), for finite gradients.

    There is no choice by element, so a factor is a sum of terms of which all but one are zero.
    """
    sign = g.mul(before).sign_()
    same, other = sign.clamp_min(0), sign.clamp_max(0)  # 1 or 0, −1 or 0
    neither = sign.mul(sign).neg_().add_(1)
    d.mul_(same.mul(grow).add_(other, alpha=-decay_factor).add_(neither))  # Δ ← η₊Δ, η₋Δ or Δ
    d.clamp_min_(least).clamp_max_(most)
    g = g.addcmul(g, other)  # g ← 0 where the sign has changed
    p.addcmul_(g.sign(), d, value=-1)  # θ ← θ − sign(g) Δ
    before.copy_(g)


class Rprop(ScratchOptimizer):
    """A drop-in for :class:`torch.optim.Rprop`, for finite gradients."""

    rule = staticmethod(rprop)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, with_fused(defaults, fused))

    def columns(self, group: Group) -> dict[str, str]:
        return {"before": "prev", "d": "step_size"}

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        state = super().new_state(p, group)
        lr = float(group["lr"])
        state["step_size"].fill_(complex(lr, lr) if p.is_complex() else lr)
        return state

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        (decay_factor, grow), (least, most) = group["etas"], group["step_sizes"]
        return {"decay_factor": decay_factor, "grow": grow, "least": least, "most": most}


def lion(
    p: TensorLike,
    g: TensorLike,
    m: TensorLike,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    decay_factor: float | None,
) -> None:
    """One step of Lion (Chen et al., 2023)."""
    if decay_factor is not None:
        p.mul_(decay_factor)  # θ ← (1 − γλ) θ
    p.add_(m.lerp(g, 1 - beta1).sign_(), alpha=-lr)  # θ ← θ − γ sign(β₁m + (1 − β₁) g)
    m.lerp_(g, 1 - beta2)  # m ← β₂m + (1 − β₂) g


class Lion(ScratchOptimizer):
    """Lion, which torch does not have. Its decay is decoupled, as AdamW's."""

    rule = staticmethod(lion)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, with_fused(defaults, fused))

    def columns(self, group: Group) -> dict[str, str]:
        return {"m": "exp_avg"}

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        return {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "decay_factor": 1 - lr * decay if decay else None,
        }


#: torch's twins.
TWINS: dict[type[ScratchOptimizer], type[torch.optim.Optimizer]] = {
    Adadelta: torch.optim.Adadelta,
    Adamax: torch.optim.Adamax,
    RAdam: torch.optim.RAdam,
    Rprop: torch.optim.Rprop,
}
