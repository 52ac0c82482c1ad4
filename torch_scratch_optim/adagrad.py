"""AdaGrad: a step size of its own for each parameter, shrinking with the gradients it has seen."""

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
        params: parameters, named parameters, or dicts that define groups, of any shape.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-2.
        lr_decay: η ≥ 0, the rate at which γ decays. Default 0.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        initial_accumulator_value: s₀ ≥ 0, one for all groups. Default 0.
        eps: ε ≥ 0, added to the denominator. Default 1e-10.
        foreach: False moves one tensor per operation; True and None move many. Same result.
        maximize: ascend instead of descend.
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

    **Paper.** Duchi, Hazan and Singer, *Adaptive subgradient methods for online learning and
    stochastic optimization* (2011): its diagonal form.

    **Where torch, and so this class, leaves the paper.** The paper's δ stands beside the root as ε
    does here (other libraries put it inside, which changes the steps of small gradients by orders
    of magnitude); `lr_decay` and the L2 penalty are additions. State exists from the start, not
    from the first step.
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
