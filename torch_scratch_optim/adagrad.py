"""AdaGrad: a step size for each parameter, which shrinks as squared gradients add up."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import engines
from ._options import Group, check_numbers
from .optimizer import ScratchOptimizer
from .tensor_likes import TensorLike


def adagrad(
    p: TensorLike,
    g: TensorLike,
    s: TensorLike,
    *,
    step_size: float,
    eps: float,
) -> None:
    """One step of AdaGrad."""
    s.addcmul_(g, g)  # s ← s + g²
    denom = s.sqrt().add_(eps)  # √s + ε
    p.addcdiv_(g, denom, value=-step_size)  # θ ← θ − γₜ g / (√s + ε)


class ScratchAdaGrad(ScratchOptimizer):
    r"""AdaGrad; a drop-in for :class:`torch.optim.Adagrad`.

    .. math::
        g_t &= \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        s_t &= s_{t-1} + g_t^2 \\
        \theta_t &= \theta_{t-1} -
            \frac{\gamma}{1 + (t - 1)\,\eta}\,\frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-2.
        lr_decay: η ≥ 0, the rate at which γ decays. Default 0.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        initial_accumulator_value: s₀ ≥ 0, the same for all groups. Default 0.
        eps: ε ≥ 0, added to the denominator. Default 1e-10.
        foreach: False updates one tensor per operation, True and None many. Same bits.
        maximize: maximize the objective instead of minimizing it. Default False.
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

    **Paper.** Duchi, Hazan and Singer, *Adaptive subgradient methods for online learning and
    stochastic optimization* (2011): its diagonal form.

    **Differences from the paper, as in torch.** The paper adds δ outside the root, as
    ε here. (Some libraries put it inside, which changes the steps of small gradients by orders of
    magnitude.) `lr_decay` and the L2 penalty are additions. The constructor creates the state, not
    the first step.
    """

    rule = staticmethod(adagrad)
    sparse_engine = staticmethod(engines.sparse)
    added_options: ClassVar[Group] = {
        "foreach": None, "maximize": False, "differentiable": False, "fused": None
    }  # fmt: skip

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-2, lr_decay: float = 0,
        weight_decay: float = 0, initial_accumulator_value: float = 0, eps: float = 1e-10,
        foreach: bool | None = None, *, maximize: bool = False, differentiable: bool = False,
        fused: bool | None = None, capturable: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach,
            "maximize": maximize, "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        if capturable:  # torch has no such option here
            defaults["capturable"] = True
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = self.new_state(p, group)

    def check_options(self, options: Group) -> None:
        check_numbers(
            options, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"
        )  # fmt: skip

    def columns(self, group: Group) -> dict[str, str]:
        return {"s": "sum"}

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        state = super().new_state(p, group)
        # From the defaults, not from the group: torch knows one initial value for all.
        initial = self.defaults["initial_accumulator_value"]
        state["sum"].fill_(complex(initial, initial) if p.is_complex() else initial)
        return state

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        return {
            "step_size": group["lr"] / (1 + (t - 1) * group["lr_decay"]),
            "eps": group["eps"],
        }

    def share_memory(self) -> None:
        """Move the accumulators to shared memory, for training from several processes."""
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p]["sum"].share_memory_()
