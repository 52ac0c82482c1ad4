"""Adam and AdamW: a step along the first moment, divided by the root of the second moment."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._options import Group, check_numbers, is_at_least_zero
from .optimizer import ScratchOptimizer
from .tensor_likes import TensorLike


def adam(
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
    """One step of Adam."""
    if decay_factor is not None:
        p.mul_(decay_factor)  # θ ← (1 − γλ) θ          AdamW
    m.lerp_(g, 1 - beta1)  # m ← β₁m + (1 − β₁) g
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v ← β₂v + (1 − β₂) g²
    if v_max is not None:
        v = v_max.clamp_min_(v)  # v ← max(v_max, v)      AMSGrad
    denom = v.sqrt().div_(bias_correction2_sqrt).add_(eps)  # √v̂ + ε
    p.addcdiv_(m, denom, value=-step_size)  # θ ← θ − γ m̂ / (√v̂ + ε)


class ScratchAdam(ScratchOptimizer):
    r"""Adam; a drop-in for :class:`torch.optim.Adam`.

    .. math::
        g_t &= \pm\nabla f_t(\theta_{t-1}) + \lambda\theta_{t-1} \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 \\
        \hat m_t &= m_t / (1 - \beta_1^t), \qquad \hat v_t = v_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \gamma\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: the learning rate γ ≥ 0, a number or a tensor of one element. Default 1e-3.
        betas: β₁ and β₂ in [0, 1), the decay rates of the two moments; two numbers or two tensors
            of one element. Default (0.9, 0.999).
        eps: ε ≥ 0, added to the denominator. Default 1e-8.
        weight_decay: λ ≥ 0, an L2 penalty λ‖θ‖²/2 added to the loss. Default 0.
        amsgrad: divide by the largest v so far instead of the current one. Default False.
        foreach: False updates one tensor per operation, True and None many. Same bits.
        maximize: maximize the objective instead of minimizing it. Default False.
        capturable: let a CUDA graph capture :meth:`step`. Step counts stay on the device, and the
            host reads nothing. Take the first step, which creates the state, before the capture. A
            learning rate that changes later must be a tensor on the device. On a CPU :meth:`step`
            raises an error, as torch's does, unless `fused` is set.
        differentiable: let gradients flow through :meth:`step`. Slow. Default False.
        fused: True runs a kernel that is generated from the rule: one pass over memory for a
            whole group. The first step compiles it in less than a second; a CPU needs a C++
            compiler.
        decoupled_weight_decay: decay the parameters themselves, as :class:`ScratchAdamW` does.
            Default False.

    Raises:
        TypeError: an option is not a number, or a flag is a string.
        ValueError: a hyper-parameter is out of range, or `lr` or `betas` are tensors together with
            ``foreach=True``; the message is torch's.
        RuntimeError: ``fused=True`` on a CPU without a C++ compiler.

    **Papers.** Kingma and Ba, *Adam: a method for stochastic optimization* (2015); Reddi, Kale and
    Kumar, *On the convergence of Adam and beyond* (2018), for AMSGrad; Loshchilov and Hutter,
    *Decoupled weight decay regularization* (2019), for AdamW.

    **Differences from the papers, as in torch.** The AMSGrad paper has no bias
    correction; here it is applied after the maximum. The AdamW paper scales the decay by a
    schedule of its own; here γ scales it.

    **Difference from torch.** This class reads tensor `betas` as numbers. torch first rounds a
    tensor β₁ to the dtype of the parameter, which matters in half precision.
    """

    rule = staticmethod(adam)
    sparse_refusal = "Adam does not support sparse gradients, please consider SparseAdam instead"
    added_options: ClassVar[Group] = {
        "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
        "differentiable": False, "decoupled_weight_decay": False, "fused": None,
    }  # fmt: skip

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None,
        maximize: bool = False, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None, decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": _pair(betas), "eps": eps, "weight_decay": weight_decay,
            "amsgrad": amsgrad, "maximize": maximize, "foreach": foreach, "capturable": capturable,
            "differentiable": differentiable, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def check_options(self, options: Group) -> None:
        lr, betas = options["lr"], _pair(options["betas"])
        one_by_one = options.get("capturable") or not options.get("foreach")
        _check_tensor("lr", lr, one_by_one)
        check_numbers(options, "lr", "eps")
        for i, beta in enumerate(betas):
            if not (is_at_least_zero(f"betas[{i}]", beta) and beta < 1.0):
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        check_numbers(options, "weight_decay")
        if not any(all(isinstance(beta, kind) for beta in betas) for kind in (float, Tensor)):
            raise ValueError("betas must be either both floats or both Tensors")
        for i, beta in enumerate(betas):
            _check_tensor(f"betas[{i}]", beta, one_by_one)

    def columns(self, group: Group) -> dict[str, str]:
        columns = {"m": "exp_avg", "v": "exp_avg_sq"}
        if group["amsgrad"]:
            columns["v_max"] = "max_exp_avg_sq"
        return columns

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        decay, decoupled = group["weight_decay"] or None, group["decoupled_weight_decay"]
        return {
            "step_size": lr / (1 - beta1**t),  # γ / (1 − β₁ᵗ)
            "beta1": beta1,
            "beta2": beta2,
            "bias_correction2_sqrt": (1 - beta2**t) ** 0.5,  # √(1 − β₂ᵗ)
            "eps": group["eps"],
            "decay_factor": 1 - lr * decay if decoupled and decay is not None else None,
        }


class ScratchAdamW(ScratchAdam):
    r"""Adam with decoupled weight decay; a drop-in for :class:`torch.optim.AdamW`.

    .. math::
        \theta_t = (1 - \gamma\lambda)\, \theta_{t-1}
            - \gamma\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    The moments are those of :class:`ScratchAdam`. The decay does not enter them.

    Args:
        weight_decay: λ ≥ 0; each step first subtracts γλθ from θ. Default 1e-2.

    All other arguments, the errors and the papers are those of :class:`ScratchAdam`.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False,
        foreach: bool | None = None, capturable: bool = False, differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize,
            capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=True,
        )  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Also after a checkpoint of Adam was loaded.
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _pair(betas: Any) -> tuple[Any, Any]:
    """β₁ and β₂; tensors of one element without dimensions, as torch keeps them."""
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError) as problem:
        raise TypeError(f"betas must be two numbers, but is {betas!r}") from problem
    squeezed = [b.squeeze() if isinstance(b, Tensor) else b for b in (beta1, beta2)]
    return squeezed[0], squeezed[1]


def _check_tensor(name: str, value: float | Tensor, one_by_one: bool) -> None:
    """Raise torch's error for a tensor hyper-parameter where torch allows none."""
    if isinstance(value, Tensor):
        if not one_by_one:
            raise ValueError(
                f"{name} as a Tensor is not supported for capturable=False and foreach=True"
            )
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
