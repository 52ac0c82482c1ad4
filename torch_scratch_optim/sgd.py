"""Stochastic gradient descent, plain and with momentum."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import engines
from ._options import Group, check_numbers, is_at_least_zero
from .optimizer import ScratchOptimizer
from .tensor_likes import TensorLike


def sgd(
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
    """One step of stochastic gradient descent."""
    if b is not None:
        if first:
            b.copy_(g)  # b ← g
        else:
            b.mul_(momentum).add_(g, alpha=1 - dampening)  # b ← μb + (1 − τ) g
        g = g.add(b, alpha=momentum) if nesterov else b  # g ← g + μb  or  b
    p.add_(g, alpha=-lr)  # θ ← θ − γg


class ScratchSGD(ScratchOptimizer):
    r"""Stochastic gradient descent; a drop-in for :class:`torch.optim.SGD`.

    .. math::
        g_t &= \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        b_1 &= g_1, \qquad b_t = \mu b_{t-1} + (1 - \tau)\, g_t \quad (t > 1) \\
        \theta_t &= \theta_{t-1} - \gamma \begin{cases}
            g_t & \mu = 0 \\ b_t & \mu > 0 \\ g_t + \mu b_t & \text{Nesterov} \end{cases}

    Args:
        params: parameters, named parameters, or dicts that define groups, of any shape.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-3.
        momentum: μ ≥ 0. Default 0, which keeps no state at all.
        dampening: τ, the share of each new gradient that the momentum ignores. Default 0.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        nesterov: look ahead along the momentum; needs ``momentum > 0`` and ``dampening = 0``.
        maximize: ascend instead of descend.
        foreach: False moves one tensor per operation; True and None move many. Same result.
        differentiable: let gradients flow through :meth:`step`; slow.
        fused: True runs a kernel that the rule writes: one pass over memory for a whole group.
            Needs a C++ compiler on a CPU, and takes a part of a second at the very first step.
        capturable: let a CUDA graph capture :meth:`step`: step counts are on the device, nothing is
            read on the host. The first step, which makes
            the state, must have run. A learning rate that is to change must be a tensor on the
            device. Without `fused`, :meth:`step` refuses it on a CPU, as torch's does.
            torch.optim has no such argument here.

    Raises:
        TypeError: an option is no number, or a flag is a string.
        ValueError: in torch's words, for a hyper-parameter out of its range.
        RuntimeError: ``fused=True``, and there is no C++ compiler.

    **Papers.** Robbins and Monro, *A stochastic approximation method* (1951), for SGD; Polyak,
    *Some methods of speeding up the convergence of iteration methods* (1964), for momentum;
    Sutskever, Martens, Dahl and Hinton, *On the importance of initialization and momentum in deep
    learning* (2013), for Nesterov's.

    **Where torch, and so this class, leaves the papers.** The papers put γ into the velocity,
    v ← μv − γg, θ ← θ + v; torch multiplies it in when the velocity is used. The two agree while γ
    is constant and part when it is scheduled. The first velocity is the whole gradient, whatever
    the dampening. Nesterov's gradient is taken at θ, after a change of variables, not at θ + μv.
    """

    rule = staticmethod(sgd)
    sparse_engine = staticmethod(engines.loop)  # a linear rule runs on sparse tensors as well
    counts_steps = False
    splits_complex = False
    added_options: ClassVar[Group] = {
        "nesterov": False, "maximize": False, "foreach": None, "differentiable": False,
        "fused": False,
    }  # fmt: skip

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-3, momentum: float = 0,
        dampening: float = 0, weight_decay: float | Tensor = 0, nesterov: bool = False, *,
        maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
        fused: bool | None = None, capturable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "foreach": foreach,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        if capturable:  # torch has no such option here
            defaults["capturable"] = True
        super().__init__(params, defaults)

    def check_options(self, options: Group) -> None:
        check_numbers(options, "lr", "momentum", "weight_decay")
        is_at_least_zero("dampening", options["dampening"])  # it may be negative, but no string
        dampened = options["dampening"] != 0
        if options["nesterov"] and (options["momentum"] <= 0 or dampened):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def columns(self, group: Group) -> dict[str, str]:
        return {"b": "momentum_buffer"} if group["momentum"] != 0 else {}

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        # In dtype and layout as what the first velocity is a copy of: the gradient, or g + λθ.
        g = p if p.grad is None else p.grad
        like = g if group["weight_decay"] == 0 else g.add(p, alpha=0)
        return {"momentum_buffer": torch.zeros_like(like)}

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        return {
            "lr": group["lr"],
            "momentum": group["momentum"],
            "dampening": group["dampening"],
            "nesterov": bool(group["nesterov"]),
        }


class ScratchMomentum(ScratchSGD):
    """SGD with momentum: :class:`ScratchSGD` with ``momentum=0.9`` by default.

    Everything else, checkpoints included, is that of :class:`ScratchSGD` and so of
    :class:`torch.optim.SGD`.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-3, momentum: float = 0.9,
        dampening: float = 0, weight_decay: float | Tensor = 0, nesterov: bool = False, *,
        maximize: bool = False, foreach: bool | None = None, differentiable: bool = False,
        fused: bool | None = None, capturable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize,
            foreach=foreach, differentiable=differentiable, fused=fused, capturable=capturable,
        )  # fmt: skip
