"""The shell around a rule: groups, state, step counts, checks and checkpoints, like torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import compress
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import engines, fused
from .carriers import Carrier
from .engines import ORDINARY, Engine, Table
from .on_device import check_devices, count_on_device, cut_alike, is_capturing, shards

Group = dict[str, Any]

_ONE = torch.tensor(1.0, device="cpu")  # to add the number 1 would make such a tensor each time

# What torch assumes for an option that an old checkpoint does not know.
_BEFORE_IT_WAS_AN_OPTION: Group = {
    "momentum": 0,
    "nesterov": False,
    "centered": False,
    "amsgrad": False,
    "decoupled_weight_decay": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def loss_gradient(p: Carrier, g: Carrier, *, l2: float | None, maximize: bool) -> Carrier:
    """The gradient that a rule descends: g ← ±g + λθ, the caller's own gradient left alone."""
    if maximize:
        g = g.neg()
    if l2 is not None:
        g = g.add(p, alpha=l2)
    return g


class ScratchOptimizer(torch.optim.Optimizer):
    """Base of all optimizers here: give it a rule and say what the rule needs.

    A subclass provides three things, and a constructor that hands its options on as `defaults`:

    * ``rule``, the mathematics: a function ``rule(p, g, **state, **scalars)`` of a parameter, its
      gradient, further state by letter and keyword scalars, which updates tensors in place;
    * :meth:`columns`, the state that the rule keeps;
    * :meth:`scalars`, the numbers that it is given at each step.

    The contract of a rule: it is elementwise. It is written in tensor methods that have a
    ``torch._foreach_`` twin. It writes parameters and state, never a gradient. It branches on
    ``None`` and ``bool``, never on a number.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups, as in
            :class:`torch.optim.Optimizer`.
        defaults: the options of every group that does not set its own.

    Raises:
        TypeError, ValueError: in torch's words, for an empty parameter list, a non-leaf tensor and
            the like.
        RuntimeError: in torch's words, for options that contradict each other.
    """

    rule: ClassVar[Callable[..., None]]

    #: Whether the state holds a ``step`` count. Without one, :meth:`scalars` is given t = 1 at a
    #: parameter's first step and t = 2 ever after.
    counts_steps: ClassVar[bool] = True
    #: Whether a complex parameter is updated as pairs of real numbers. A linear rule need not.
    splits_complex: ClassVar[bool] = True

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        _refuse_contradictions(defaults)
        super().__init__(params, defaults)

    def columns(self, group: Group) -> dict[str, str]:
        """The state that a group keeps: ``{letter in the rule: name in a checkpoint}``."""
        raise NotImplementedError

    def scalars(self, t: float, group: Group) -> dict[str, Any]:
        """The rule's keyword scalars at step t = 1, 2, …: plain arithmetic on a group's options.

        The options may be tensors, and for a capturable group so is t: a number for each parameter.
        """
        raise NotImplementedError

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before a parameter's first step: a count of zero and columns of zeros."""
        # One count for each parameter, never shared: torch's optimizers increment it in place.
        state = {"step": _step_count(0.0, p, group)} if self.counts_steps else {}
        for name in self.columns(group).values():
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update, once, every parameter that has a gradient.

        Args:
            closure: clears the gradients, computes the loss, runs backward and returns the loss.

        Returns:
            What `closure` returned, or None without one.

        Raises:
            RuntimeError: a gradient is sparse, which the optimizer does not support; or a CUDA
                graph is being captured, in which the step count, a number on the host, would be
                frozen. No parameter and no state has changed.
            AssertionError: in torch's words, for capturable parameters on a CPU.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # GradScaler sets `found_inf` and `grad_scale` for the time of a step.
        if (found_inf := getattr(self, "found_inf", None)) is not None and found_inf.item():
            return loss
        work: list[tuple[Group, list[Tensor], Engine]] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group.get("capturable"):
                check_devices(group, params, self.state)
            elif self.counts_steps and is_capturing():
                raise RuntimeError(
                    "Attempting CUDA graph capture of step() for an instance of "
                    f"{type(self).__name__} but param_groups' capturable is False."
                )
            # Before any state is made: a first step that fails must remain a first step.
            if sparse := [p for p in params if p.grad.is_sparse]:
                work.append((group, sparse, self.sparse_engine(group)))
                params = [p for p in params if not p.grad.is_sparse]
            work.append((group, params, self.engine(group, params)))
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
            for group, params, engine in work:
                for t, table in self._tables(group, params):
                    engine(self.rule, table, self.scalars(t, group))
        return loss

    def engine(self, group: Group, params: list[Tensor]) -> Engine:
        """The engine that a group's options ask for; by default foreach, for ordinary tensors."""
        # While torch.compile traces a step, every group that it sees is capturable.
        if group.get("differentiable") or group.get("capturable"):
            return engines.tensorial
        if group.get("fused"):
            return partial(fused.fused, grad_scale=getattr(self, "grad_scale", None))
        choice = group.get("foreach")
        if choice is None:
            choice = ORDINARY.issuperset(map(type, params))
        return engines.foreach if choice else engines.loop

    def sparse_engine(self, group: Group) -> Engine:
        """The engine for parameters whose gradient is sparse.

        Raises:
            RuntimeError: the optimizer, or the options of the group, do not support that.
        """
        raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")

    def _tables(self, group: Group, params: list[Tensor]) -> Iterable[tuple[Any, Table]]:
        """What the rule needs of each parameter, by the step that it now takes.

        The step is a number or, if it stays on the device, a tensor of one for each parameter.
        """
        table: Table = {"p": params, "g": [p.grad for p in params if p.grad is not None]}
        ordinary = ORDINARY.issuperset(map(type, params))
        counts: list[float] | Tensor = [2.0] * len(params)
        if columns := self.columns(group):
            states = [self.state[p] for p in params]
            one_of_them = next(iter(columns.values()))
            young = [state.get(one_of_them) is None for state in states]
            if any(young) and is_capturing():
                raise RuntimeError(
                    "step() makes state: it cannot be captured before it has run once"
                )
            for p, state in compress(zip(params, states, strict=True), young):
                if state.get(one_of_them) is None:  # a parameter may be listed twice
                    state.update(self.new_state(p, group))
            if not ordinary:
                for state, p in zip(states, params, strict=True):
                    state |= {name: cut_alike(state[name], p) for name in columns.values()}
            table |= {letter: [s[name] for s in states] for letter, name in columns.items()}
            if self.counts_steps and params:
                count = count_on_device if group.get("capturable") else _count
                counts = count([state["step"] for state in states])
            elif any(young):
                counts = [1.0 if is_young else 2.0 for is_young in young]
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if scale is not None and any(g.is_sparse for g in table["g"]):
            # The fused engine does this itself; sparse gradients have another engine.
            table["g"] = engines.unscaled(table["g"], scale)
        if not ordinary:
            table = shards(table)
        if (self.splits_complex or group.get("fused")) and any(map(torch.is_complex, params)):
            table["g"] = [g.resolve_conj() for g in table["g"]]
            table = {letter: list(map(_as_real, column)) for letter, column in table.items()}
        return ((counts, table),) if isinstance(counts, Tensor) else _by_step(table, counts)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells GradScaler to leave the gradients to :meth:`step`, `found_inf` and `grad_scale`."""
        return all(g.get("fused") and not g.get("capturable") for g in self.param_groups)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, with options of its own if it has any.

        Raises:
            RuntimeError: in torch's words, for options that contradict each other.
        """
        if isinstance(param_group, dict):
            _refuse_contradictions(param_group)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Both unpickling and load_state_dict come through here; refuse before anything is replaced.
        for group in state["param_groups"]:
            _refuse_contradictions(group)
        super().__setstate__(state)
        for group in self.param_groups:
            for option in self.defaults.keys() & _BEFORE_IT_WAS_AN_OPTION.keys():
                group.setdefault(option, _BEFORE_IT_WAS_AN_OPTION[option])
            for p in group["params"]:
                step = self.state[p].get("step") if p in self.state else None
                if isinstance(step, Tensor):  # torch moves those of fused groups to the device
                    self.state[p]["step"] = step.to(_home_of_step(p, group))
                elif step is not None:
                    self.state[p]["step"] = _step_count(float(step), p, group)


def check_options(**options: float | Tensor) -> None:
    """Refuse, in torch's words, hyper-parameters that may not be negative and are.

    Raises:
        ValueError: a negative or NaN value, or a tensor `lr` of more than one element.
    """
    in_words = {"lr": "learning rate", "eps": "epsilon value"}
    for name, value in options.items():
        if name == "lr" and isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not value >= 0.0:
            raise ValueError(f"Invalid {in_words.get(name, f'{name} value')}: {value}")


def _refuse_contradictions(options: Group) -> None:
    """Refuse, in torch's words, options that contradict each other."""
    if options.get("fused") and options.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`")
    if options.get("fused") and options.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    # With a GPU it depends on where the parameters are, and the first step tells.
    compiles = options.get("fused") and not options.get("capturable")
    if compiles and not torch.cuda.is_available():
        fused.require_compiler()


def _count(steps: list[Tensor]) -> list[float]:
    """Count one more step, and say how many that makes."""
    kinds = set(map(type, steps))
    if not all(issubclass(kind, Tensor) for kind in kinds):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors"
        )
    if (
        kinds != {Tensor}
        or not all(map(Tensor.is_floating_point, steps))
        or len(set(map(id, steps))) < len(steps)
    ):
        return [step.add_(1).item() for step in steps]
    torch._foreach_add_(steps, [_ONE] * len(steps))
    return list(map(Tensor.item, steps))


def _by_step(table: Table, counts: list[float]) -> Iterable[tuple[float, Table]]:
    """Put together what has taken equally many steps: then each scalar is one number for all."""
    different = dict.fromkeys(counts)
    if len(different) < 2:
        return ((t, table) for t in different)
    return ((t, engines.pick(table, [n == t for n in counts])) for t in different)


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _step_count(value: float, p: Tensor, group: Group) -> Tensor:
    """A step count as torch keeps it: 0-d, in float32 unless the default is float64."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(value, dtype=dtype, device=_home_of_step(p, group))


def _home_of_step(p: Tensor, group: Group) -> torch.device:
    return p.device if group.get("capturable") else torch.device("cpu")
