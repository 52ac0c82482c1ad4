"""RMSProp: the gradient, divided by a running root mean square of recent gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._options import Group, check_numbers
from .optimizer import ScratchOptimizer
from .tensor_likes import TensorLike


def rmsprop(
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
    """One step of RMSProp."""
    v.mul_(alpha).addcmul_(g, g, value=1 - alpha)  # v ← αv + (1 − α) g²
    if g_avg is None:
        denom = v.sqrt()  # √v
    else:
        g_avg.lerp_(g, 1 - alpha)  # ḡ ← αḡ + (1 − α) g
        denom = v.addcmul(g_avg, g_avg, value=-1).sqrt_()  # √(v − ḡ²)    centered
    denom.add_(eps)  # √v + ε
    if b is None:
        p.addcdiv_(g, denom, value=-lr)  # θ ← θ − γg / (√v + ε)
    else:
        b.mul_(momentum).addcdiv_(g, denom)  # b ← μb + g / (√v + ε)
        p.add_(b, alpha=-lr)  # θ ← θ − γb


class ScratchRMSProp(ScratchOptimizer):
    r"""RMSProp; a drop-in for :class:`torch.optim.RMSprop`.

    .. math::
        g_t &= \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        v_t &= \alpha v_{t-1} + (1 - \alpha)\, g_t^2 \\
        \bar g_t &= \alpha \bar g_{t-1} + (1 - \alpha)\, g_t \\
        \tilde v_t &= \begin{cases}
            v_t - \bar g_t^2 & \text{centered} \\ v_t & \text{otherwise} \end{cases} \\
        b_t &= \mu b_{t-1} + \frac{g_t}{\sqrt{\tilde v_t} + \epsilon} \\
        \theta_t &= \theta_{t-1} - \gamma b_t

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-2.
        alpha: α ≥ 0, the smoothing constant of the running averages. Default 0.99.
        eps: ε ≥ 0, added to the denominator. Default 1e-8.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        momentum: μ ≥ 0. Default 0, which keeps no buffer.
        centered: divide by the standard deviation of the gradient instead of its root mean square.
            Default False.
        capturable: let a CUDA graph capture :meth:`step`. Step counts stay on the device, and the
            host reads nothing. Take the first step, which creates the state, before the capture. A
            learning rate that changes later must be a tensor on the device. On a CPU :meth:`step`
            raises an error, as torch's does, unless `fused` is set.
        foreach: False updates one tensor per operation, True and None many. Same bits.
        maximize: maximize the objective instead of minimizing it. Default False.
        differentiable: let gradients flow through :meth:`step`. Slow. Default False.
        fused: True runs a kernel that is generated from the rule: one pass over memory for a
            whole group. The first step compiles it in less than a second; a CPU needs a C++
            compiler. torch.optim has no such argument for this optimizer.

    Raises:
        TypeError: an option is not a number, or a flag is a string.
        ValueError: a hyper-parameter is out of range; the message is torch's.
        RuntimeError: ``fused=True`` on a CPU without a C++ compiler.

    **Sources.** Tieleman and Hinton, *Lecture 6.5: rmsprop* (Coursera, 2012), for the method;
    Graves, *Generating sequences with recurrent neural networks* (2013), for the centered form.

    **Differences from the sources, as in torch.** Graves puts ε inside the root, as
    some libraries do. torch adds it outside, which changes a step by orders of magnitude when
    gradients are far below √ε. In the centered form rounding can make v − ḡ² negative, and the
    result is NaN.
    """

    rule = staticmethod(rmsprop)
    sparse_refusal = "RMSprop does not support sparse gradients"
    added_options: ClassVar[Group] = {
        "momentum": 0, "centered": False, "foreach": None, "maximize": False,
        "differentiable": False, "capturable": False,
    }  # fmt: skip

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0, momentum: float = 0, centered: bool = False,
        capturable: bool = False, foreach: bool | None = None, maximize: bool = False,
        differentiable: bool = False, *, fused: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable,
        }  # fmt: skip
        if fused is not None:  # torch has no such option here
            defaults["fused"] = fused
        super().__init__(params, defaults)

    def check_options(self, options: Group) -> None:
        check_numbers(options, "lr", "eps", "momentum", "weight_decay", "alpha")

    def columns(self, group: Group) -> dict[str, str]:
        columns = {"v": "square_avg"}
        if group["momentum"] > 0:
            columns["b"] = "momentum_buffer"
        if group["centered"]:
            columns["g_avg"] = "grad_avg"
        return columns

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        return {
            "lr": group["lr"],
            "alpha": group["alpha"],
            "eps": group["eps"],
            "momentum": group["momentum"],
        }
