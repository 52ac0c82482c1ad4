"""The base class: what an optimizer provides, and what torch expects of one.

How a step is taken stands in ``_step.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim.optimizer import (
    ParamsT,
    StateDict,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from ._checkpoints import check_state_dict
from ._options import Group, check_contradictions, check_flags, check_numbers, meant_by
from ._state import step_count, step_device
from ._step import take_step
from ._tensors import Checked
from .engines import GRADIENT, Engine, Scalars

_AS_IT_IS = dict(zip(GRADIENT, (None, False, None), strict=True))
# torch hides these from its compiler by a decorator, whose first call imports the compiler: that
# takes a second or two.
_UNDECORATED: dict[Any, Callable[..., Any]] = {
    method: method.__wrapped__
    for name in ("zero_grad", "add_param_group", "load_state_dict")
    if hasattr(method := getattr(torch.optim.Optimizer, name), "__wrapped__")
}


class ScratchOptimizer(torch.optim.Optimizer):
    """Base class of all optimizers in this package.

    A subclass provides three things, and a constructor that passes its options on as `defaults`:

    * ``rule``, the mathematics: a function ``rule(p, g, **state, **scalars)`` of a parameter, its
      gradient, further state by symbol and keyword scalars, which updates tensors in place;
    * :meth:`columns`, the state that the rule keeps;
    * :meth:`scalars`, the numbers that the rule receives at each step.

    A rule is elementwise. It calls tensor methods that have a ``torch._foreach_`` counterpart. It
    changes parameters and state, never a gradient. It branches on ``None`` and ``bool``, never on
    a number.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups, as in
            :class:`torch.optim.Optimizer`.
        defaults: the options of every group that does not set its own.

    Raises:
        TypeError, ValueError: the parameters are not valid, for example an empty list or a
            non-leaf tensor; the messages are torch's.
        RuntimeError: options contradict each other; the message is torch's.
    """

    rule: ClassVar[Callable[..., None]]

    #: Whether the state holds a ``step`` count. Without one, :meth:`scalars` is given None, and the
    #: rule a flag `first`: whether this is a parameter's first step.
    counts_steps: ClassVar[bool] = True
    #: Whether a complex parameter is updated as pairs of real numbers. A linear rule need not.
    splits_complex: ClassVar[bool] = True
    #: The engine for parameters whose gradient is sparse, if they are supported.
    sparse_engine: ClassVar[Callable[..., None] | None] = None
    #: The error message if they are not supported, where torch has one of its own.
    sparse_refusal: ClassVar[str] = ""
    #: The values that torch gives to options that an older checkpoint lacks.
    added_options: ClassVar[Group] = {
        "maximize": False, "foreach": None, "differentiable": False, "fused": None
    }  # fmt: skip

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        self._check_options(defaults)
        self._checked: dict[int, Checked] = {}
        super().__init__(params, defaults)

    def check_options(self, options: Group) -> None:
        """Check the options of the constructor or of a group.

        Raises:
            TypeError, ValueError: an option is not a number, or is out of range.
        """

    def columns(self, group: Group) -> dict[str, str]:
        """The state that a group keeps: ``{symbol in the rule: name in a checkpoint}``."""
        raise NotImplementedError

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        """The rule's keyword scalars at step t = 1, 2, …: plain arithmetic on a group's options.

        The options may be tensors. For a capturable group t is a tensor too, with a number for
        each parameter.
        """
        raise NotImplementedError

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        """The state before the first step of a parameter: zeros, and a step count of zero."""
        # One count for each parameter, never shared: torch's optimizers increment it in place.
        state = {"step": step_count(0.0, p, group)} if self.counts_steps else {}
        for name in self.columns(group).values():
            state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update, once, every parameter that has a gradient.

        Args:
            closure: clears the gradients, computes the loss, runs backward and returns the loss.

        Returns:
            What `closure` returned, or None without one.

        Raises:
            RuntimeError: a gradient is sparse, which the optimizer does not support; a gradient or
                a state has another shape than its parameter, is on another device or has a dtype
                that cannot be converted; or a CUDA graph is being captured, in
                which the step count, a number on the host, would be frozen. No parameter and no
                state has changed.
            AssertionError: in torch's words, for capturable parameters on a CPU.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
            take_step(self)
        return loss

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Let ``step`` call hooks and name itself to profilers, as in torch.

        In torch that takes a good part of a small step. Here it takes less where there are no hooks
        and no profiler. An execution trace that is recorded without one does not show the name.
        """
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @wraps(func)
        def step(self: ScratchOptimizer, *args: Any, **kwargs: Any) -> Any:
            is_plain = not (
                torch.compiler.is_compiling()
                or torch._C._autograd._profiler_enabled()
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
            )
            return func(self, *args, **kwargs) if is_plain else hooked(self, *args, **kwargs)

        return step

    def engine(self, group: Group) -> Engine | None:
        """An engine of one's own for a group; None leaves it to the group's options.

        Capturable and compiled steps take it only if it has an attribute ``takes_tensors`` that is
        true: there the scalars are tensors, of one number or of one for each parameter.
        """
        return None

    def _gradient(self, group: Group, inverse_scale: Any) -> Scalars:
        """How the gradient is made that a rule descends; see :func:`~.engines.descending`."""
        maximize, decay = bool(group.get("maximize")), None
        if "weight_decay" in self.defaults or "weight_decay" in group:
            decay = group["weight_decay"]
            if decay is None or isinstance(decay, str):
                check_numbers(group, "weight_decay")  # which refuses it
            if group.get("decoupled_weight_decay"):
                decay = None
        if inverse_scale is None and not maximize and not decay:
            return _AS_IT_IS
        return dict(zip(GRADIENT, (inverse_scale, maximize, decay or None), strict=True))

    def _sparse_engine(self, group: Group) -> Engine:
        if self.sparse_engine is None:
            raise RuntimeError(self.sparse_refusal or f"{type(self).__name__} does not support "
                               "sparse gradients")  # fmt: skip
        if group.get("weight_decay"):
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return self.sparse_engine

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells GradScaler to leave the gradients to :meth:`step`, `found_inf` and `grad_scale`."""
        assigned: bool | None = self.__dict__.get("_step_supports_amp_scaling")
        if assigned is not None:  # as wrappers do
            return assigned
        return all(g.get("fused") for g in self.param_groups)

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self.__dict__["_step_supports_amp_scaling"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, as ``torch.optim.Optimizer.zero_grad`` does."""
        _undecorated(super().zero_grad)(set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, with options of its own if it has any.

        Raises:
            TypeError, ValueError, RuntimeError: as in the constructor.

        Warns:
            UserWarning: a key is not an option but resembles one. It stays in the group, as in
                torch.
        """
        if isinstance(param_group, dict):
            self._check_options(self.defaults | param_group)
            for name in param_group:
                if name not in self.defaults and (meant := meant_by(str(name), self.defaults)):
                    warnings.warn(
                        f"{type(self).__name__} has no option {name!r}, which a parameter group "
                        f"sets; did you mean {meant!r}?",
                        stacklevel=2,
                    )
        _undecorated(super().add_param_group)(param_group)
        added = self.param_groups[-1]
        if added.get("fused") and not added.get("capturable"):
            from . import _fused

            try:
                _fused.require_kernels(added["params"])
            except RuntimeError:
                self.param_groups.pop()
                raise

    def _check_options(self, options: Group) -> None:
        check_flags(options)
        self.check_options(options)
        check_contradictions(options)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a checkpoint from ``state_dict()`` of this optimizer or of torch's.

        A checkpoint of another optimizer, or of parameters of other shapes, raises an error here.
        In torch the next step fails.

        Args:
            state_dict: the checkpoint.

        Raises:
            ValueError: options or state that a step needs are missing, or state has another shape
                than its parameter. Nothing has been replaced.
            TypeError: an option is not a number. Nothing has been replaced.
        """

        def check(_: torch.optim.Optimizer, state_dict: StateDict) -> None:
            check_state_dict(self, state_dict)

        # As a hook, so that those of the user, which may mend a checkpoint, come before.
        hook = self.register_load_state_dict_pre_hook(check)
        try:
            _undecorated(super().load_state_dict)(state_dict)
        finally:
            hook.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Both unpickling and load_state_dict come through here; refuse before anything is replaced.
        for group in state.get("param_groups", ()):
            check_contradictions(group)
        super().__setstate__(state)
        self._checked = {}
        for group in self.param_groups:
            for option, value in self.added_options.items():
                if option in self.defaults:
                    group.setdefault(option, value)
            for p in group["params"]:
                step = self.state[p].get("step") if p in self.state else None
                if isinstance(step, Tensor):  # torch moves those of fused groups to the device
                    self.state[p]["step"] = step.to(step_device(p, group))
                elif step is not None:
                    self.state[p]["step"] = step_count(float(step), p, group)


def _undecorated(method: Any) -> Callable[..., Any]:
    """A method of torch's without its decorator for the compiler, unless that is tracing."""
    plain = None if torch.compiler.is_compiling() else _UNDECORATED.get(method.__func__)
    return method if plain is None else partial(plain, method.__self__)
