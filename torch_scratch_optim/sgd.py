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
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-3.
        momentum: μ ≥ 0. Default 0, which keeps no state.
        dampening: τ; the buffer adds (1 − τ) g. Default 0.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        nesterov: use Nesterov momentum; needs ``momentum > 0`` and ``dampening = 0``. Default
            False.
        maximize: maximize the objective instead of minimizing it. Default False.
        foreach: False updates one tensor per operation, True and None many. Same bits.
        differentiable: let gradients flow through :meth:`step`. Slow. Default False.
        fused: True runs a kernel that is generated from the rule: one pass over memory for a
            whole group. The first step compiles it in less than a second; a CPU needs a C++
            compiler.
        capturable: let a CUDA graph capture :meth:`step`. Step counts stay on the device, and the
            host reads nothing. Take the first step, which creates the state, before the capture. A
            learning rate that changes later must be a tensor on the device. On a CPU :meth:`step`
            raises an error, as torch's does, unless `fused` is set.
            torch.optim has no such argument for this optimizer.

    Raises:
        TypeError: an option is not a number, or a flag is a string.
        ValueError: a hyper-parameter is out of range; the message is torch's.
        RuntimeError: ``fused=True`` on a CPU without a C++ compiler.

    **Papers.** Robbins and Monro, *A stochastic approximation method* (1951), for SGD; Polyak,
    *Some methods of speeding up the convergence of iteration methods* (1964), for momentum;
    Sutskever, Martens, Dahl and Hinton, *On the importance of initialization and momentum in deep
    learning* (2013), for Nesterov momentum.

    **Differences from the papers, as in torch.** The papers put γ into the velocity,
    v ← μv − γg, θ ← θ + v. torch multiplies by γ when it uses the buffer. The two agree while γ is
    constant, and differ when a scheduler changes it. The first buffer is the undamped gradient.
    The gradient for Nesterov momentum is taken at θ, after a change of variables, not at θ + μv.
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
        is_at_least_zero("dampening", options["dampening"])  # it may be negative, but not a string
        dampened = options["dampening"] != 0
        if options["nesterov"] and (options["momentum"] <= 0 or dampened):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def columns(self, group: Group) -> dict[str, str]:
        return {"b": "momentum_buffer"} if group["momentum"] != 0 else {}

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        # The first buffer is a copy of the gradient, or of g + λθ: same dtype and layout.
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

    Everything else, including checkpoints, is as in :class:`ScratchSGD` and
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
