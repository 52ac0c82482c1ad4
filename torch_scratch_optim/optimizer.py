"""The shell around a rule: groups, state, step counts, checks and checkpoints, like torch's."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, StateDict

from . import engines
from ._checkpoints import check_state_dict
from ._checks import Checked, check, check_tensors, count, next_counts
from ._options import Group, check_contradictions, check_flags, check_numbers, meant_by
from .engines import GRADIENT, PLAIN_TENSORS, Engine, Scalars, Table
from .on_device import check_devices, count_on_device, is_capturing, redistributed_like, shards

Update = Callable[[], None]
_AS_IT_IS = dict(zip(GRADIENT, (None, False, None), strict=True))
# torch hides these from its compiler by a decorator, whose first call imports the compiler: that
# takes a second or two.
_UNDECORATED: dict[Any, Callable[..., Any]] = {
    method: method.__wrapped__
    for name in ("zero_grad", "add_param_group", "load_state_dict")
    if hasattr(method := getattr(torch.optim.Optimizer, name), "__wrapped__")
}


class Work(NamedTuple):
    """Rows of a group that are to be moved.

    Attributes:
        group: the group.
        table: what its rule works on.
        steps: the step counts of the rows, if they are counted.
        new: by parameter, the state that is made in this step.
        first: whether it is made of each row; or that it is of none.
        checked: what is known of the tensors, if they are ordinary.
        engine: what moves them, if the gradients are sparse.
    """

    group: Group
    table: Table
    steps: list[Tensor]
    new: dict[Tensor, Group]
    first: list[bool]
    checked: Checked | None = None
    engine: Engine | None = None


class ScratchOptimizer(torch.optim.Optimizer):
    """Base of all optimizers here: give it a rule and say what the rule needs.

    A subclass provides three things, and a constructor that hands its options on as `defaults`:

    * ``rule``, the mathematics: a function ``rule(p, g, **state, **scalars)`` of a parameter, its
      gradient, further state by symbol and keyword scalars, which updates tensors in place;
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

    #: Whether the state holds a ``step`` count. Without one, :meth:`scalars` is given None, and the
    #: rule a flag `first`: whether this is a parameter's first step.
    counts_steps: ClassVar[bool] = True
    #: Whether a complex parameter is updated as pairs of real numbers. A linear rule need not.
    splits_complex: ClassVar[bool] = True
    #: The engine for parameters whose gradient is sparse, if they are supported.
    sparse_engine: ClassVar[Callable[..., None] | None] = None
    #: What to say if they are not, where torch has words of its own.
    sparse_refusal: ClassVar[str] = ""
    #: What torch assumes for options that a checkpoint of an older version does not have.
    added_options: ClassVar[Group] = {
        "maximize": False, "foreach": None, "differentiable": False, "fused": None
    }  # fmt: skip

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        self._check_options(defaults)
        self._checked: dict[int, Checked] = {}
        super().__init__(params, defaults)

    def check_options(self, options: Group) -> None:
        """Refuse options that are out of their range, those of the constructor or of a group.

        Raises:
            TypeError, ValueError: an option is no number, or out of its range.
        """

    def columns(self, group: Group) -> dict[str, str]:
        """The state that a group keeps: ``{symbol in the rule: name in a checkpoint}``."""
        raise NotImplementedError

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
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
            # All groups are checked, and what must be compiled is, before anything moves.
            updates: list[Update] = []
            counted: set[int] = set()
            for group in self.param_groups:
                self._plan(group, updates, counted)
            engines.run_all(updates)
        return loss

    def engine(self, group: Group) -> Engine | None:
        """An engine of one's own for a group; None leaves it to the group's options."""
        return None

    def _sparse_engine(self, group: Group) -> Engine:
        if self.sparse_engine is None:
            raise RuntimeError(self.sparse_refusal or f"{type(self).__name__} does not support "
                               "sparse gradients")  # fmt: skip
        if group.get("weight_decay"):
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return self.sparse_engine

    def _plan(self, group: Group, updates: list[Update], counted: set[int]) -> None:
        """Check a group's step and compile for it; add to `updates` what is left to do."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        for p in group["params"]:
            if (g := p.grad) is not None:
                params.append(p)
                grads.append(g)
        if group.get("capturable"):
            if "capturable" in self.defaults:  # elsewhere torch ignores it, or its compiler sets it
                check_devices(group, params, self.state)
        elif self.counts_steps and is_capturing():
            raise RuntimeError(
                "Attempting CUDA graph capture of step() for an instance of "
                f"{type(self).__name__} but param_groups' capturable is False."
            )
        if not params:
            return
        symbols = self.columns(group)
        states, new = self._states(group, params, symbols)
        columns = {"p": params, "g": grads}
        for symbol, name in symbols.items():
            columns[symbol] = [state[name] for state in states]
        steps = [state["step"] for state in states] if self.counts_steps else []
        if len(self.param_groups) > 1:
            ids = set(map(id, steps))
            if not counted.isdisjoint(ids):  # counts that groups share are read when they are due
                engines.run_all(updates)
                updates.clear()
            counted |= ids
        first = [p in new for p in params] if new else [False]
        checked = self._check(group, columns, steps)
        if checked is not None:
            table = Table(columns, checked.sizes)
            updates.append(self._update(Work(group, table, steps, new, first, checked)))
            return
        table = Table(columns)
        sparse = [g.is_sparse for g in grads]
        engine = self._sparse_engine(group) if True in sparse else None
        for rows, own_engine in (sparse, engine), ([not s for s in sparse], None):
            if True in rows:
                part = self._real(group, table.where(rows), new)
                own = [*compress(first, rows)] if new else first
                work = Work(group, part, [*compress(steps, rows)], new, own, engine=own_engine)
                updates.append(self._update(work))

    def _update(self, work: Work) -> Update:
        group, table, checked = work.group, work.table, work.checked
        own_engine = None if work.engine else self.engine(group)
        engine = work.engine or own_engine
        on_gpu = checked if checked is not None and checked.on_gpu else None
        capturable, fused = group.get("capturable"), group.get("fused")
        if fused and group.get("differentiable"):
            check_contradictions(group)
        if on_gpu and not engine and (fused or capturable):
            update = self._by_kernel_on_gpu(work, on_gpu)
            if update:
                return update
        # GradScaler sets `found_inf` and `grad_scale` for the time of a step.
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return partial(engines.run_all, [])
        scale: Tensor | None = getattr(self, "grad_scale", None)
        gradient = self._gradient(group, None if scale is None else 1 / scale.item())
        if capturable:
            move = partial(self._by_tensors_on_device, work, gradient)
            return partial(self._finish, work.new, move, [])
        scalars = self._scalars(work)
        if own_engine is None and not group.get("differentiable"):  # those may want tensors
            most = engines.FLOAT_MAX if fused else engines.HALF_MAX
            if engines.are_unusual((gradient, *scalars), most):
                gradient = engines.to_python_scalars(gradient)
                # Rows that share scalars still do: they are gathered by that.
                known = {id(own): engines.to_python_scalars(own) for own in scalars}
                scalars = [known[id(own)] for own in scalars]
                if engines.are_unusual((gradient, *scalars), most):
                    rule = engines.descending(self.rule, gradient)
                    engines.try_out(_engine(group, table, checked), rule, table, scalars)
        planned = None
        default = not engine and len(scalars) == 1 and group.get("foreach") is None
        if fused and not engine:
            from . import _fused  # takes as long as all the rest

            planned = _fused.plan(self.rule, table, scalars, gradient, checked, work.steps)
        elif on_gpu and default and not group.get("differentiable"):
            from . import _fused

            given = table, scalars[0], gradient, on_gpu, work.steps
            planned = _fused.plan_default(self.rule, *given)
        if planned is None:
            engine = engine or _engine(group, table, checked)
            rule = engines.descending(self.rule, gradient)
            planned = partial(engines.run, engine, rule, table, scalars), work.steps
        return partial(self._finish, work.new, *planned)

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

    def _scalars(self, work: Work) -> list[Scalars]:
        """The rule's scalars for all rows, or those of each row where steps differ."""
        values: list[Any] = work.first
        if self.counts_steps:
            look = work.checked.next_counts if work.checked else next_counts
            values = look(work.steps)
        if values.count(values[0]) == len(values):
            return [self._scalars_at(values[0], work.group)]
        at = {value: self._scalars_at(value, work.group) for value in dict.fromkeys(values)}
        return [at[value] for value in values]

    def _scalars_at(self, value: Any, group: Group) -> Scalars:
        if self.counts_steps:
            return self.scalars(value, group)
        return self.scalars(None, group) | {"first": value}

    def _finish(self, new: dict[Tensor, Group], move: Update, steps: list[Tensor]) -> None:
        """Move, keep the new state, and count what was moved; if it fails, do neither."""
        for p in new:
            if p not in self.state and not isinstance(self.state, defaultdict):
                raise KeyError(p)  # a plain dict has no place for it
        move()
        for p, state in new.items():
            self.state[p].update(state)
        if steps:
            count(steps)

    def _by_kernel_on_gpu(self, work: Work, checked: Checked) -> Update | None:
        """A step by kernels that count on a GPU; None if they cannot take the tensors."""
        from . import _fused

        group, table = work.group, work.table
        device = table.columns["p"][0].device
        shared = len(set(map(id, work.steps))) < len(work.steps)
        if shared or checked.steps - {(device, torch.float32)}:
            return None
        found_inf, scale = (getattr(self, name, None) for name in ("found_inf", "grad_scale"))
        if found_inf is not None:
            if work.new and found_inf.item():  # a first step must remain a first step
                return partial(engines.run_all, [])
            found_inf = found_inf.to(device, torch.float32)
        options = group if scale is None else group | {"grad_scale": scale.to(device)}

        def scalars(first: bool | None, t: Any, group: Group) -> dict[str, Any]:
            own = self.scalars(t, group) | ({} if first is None else {"first": first})
            scale = group.get("grad_scale")
            return own | self._gradient(group, None if scale is None else 1 / scale)

        moves: list[Update] = []
        for first, rows in by_value(table, [None] if self.counts_steps else work.first):
            # While a graph is captured nothing can be compiled, so make what later steps need, too.
            for flag in [False, True] if first else [first]:
                given = options, rows, checked, work.steps, found_inf, flag
                move = _fused.plan_on_device(self.rule, partial(scalars, flag), *given)
            if move is None:
                return None
            moves.append(move)
        return partial(self._finish, work.new, partial(engines.run_all, moves), [])

    def _by_tensors_on_device(self, work: Work, gradient: dict[str, Any]) -> None:
        """Count on the device by tensor operations; what follows from the counts stays there."""
        rule = engines.descending(self.rule, gradient)
        if self.counts_steps:
            scalars = self.scalars(count_on_device(work.steps), work.group)
            engines.capturable(rule, work.table, scalars)
        else:
            for first, rows in by_value(work.table, work.first):
                engines.capturable(rule, rows, self.scalars(None, work.group) | {"first": first})

    def _check(
        self, group: Group, columns: dict[str, list[Tensor]], steps: list[Tensor]
    ) -> Checked | None:
        """Refuse tensors that no engine may move; say what else there is to know of the tensors,
        if they are ordinary ones."""
        tensors = [t for column in columns.values() for t in column]
        tensors += steps
        compiling = torch.compiler.is_compiling()
        checked: Checked | None = None if compiling else self._checked.get(id(group))
        if checked is None or not checked.holds(columns, tensors):
            check_tensors(self, group, columns)
            checked = None if compiling else check(columns, steps, tensors)
            if checked is not None:
                self._checked[id(group)] = checked
                if len(self._checked) > len(self.param_groups):  # some groups are gone
                    present = set(map(id, self.param_groups))
                    self._checked = {k: v for k, v in self._checked.items() if k in present}
        return checked

    def _states(
        self, group: Group, params: list[Tensor], columns: dict[str, str]
    ) -> tuple[list[Group], dict[Tensor, Group]]:
        """The state of each parameter, and what of it is new and not yet kept.

        As in torch, a state that is empty is made; one in which something is missing is an error.
        """
        if not columns and not self.counts_steps:
            return [], {}
        states: list[Any] = list(map(self.state.get, params))
        if self.counts_steps:
            if all(states):
                return states, {}
            missing = [not state for state in states]
        else:  # as in torch's SGD, whose buffer is absent or None before
            name = next(iter(columns.values()))
            missing = [not state or state.get(name) is None for state in states]
            if True not in missing:
                return states, {}
        if any(p.grad.is_sparse for p in params if p.grad is not None):
            self._sparse_engine(group)  # which may refuse
        if is_capturing():
            raise RuntimeError("step() makes state: it cannot be captured before it has run once")
        new = {p: self.new_state(p, group) for p in compress(params, missing)}
        return [new.get(p) or state for p, state in zip(params, states, strict=True)], new

    def _real(self, group: Group, table: Table, new: dict[Tensor, Group]) -> Table:
        """Real tensors that are here: this process's shards, complex numbers as pairs."""
        columns = table.columns
        params = columns["p"]
        if not PLAIN_TENSORS.issuperset(map(type, params)):
            for symbol, name in self.columns(group).items():
                columns[symbol] = list(map(redistributed_like, columns[symbol], params))
                for p, t in zip(params, columns[symbol], strict=True):
                    (new.get(p) or self.state[p])[name] = t
            columns = shards(columns)
        if (self.splits_complex or group.get("fused")) and any(map(torch.is_complex, params)):
            columns["g"] = [g.resolve_conj() for g in columns["g"]]
            columns = {symbol: list(map(_as_real, column)) for symbol, column in columns.items()}
        return table if columns is table.columns else Table(columns)

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
            TypeError, ValueError, RuntimeError: as by the constructor.

        Warns:
            UserWarning: a name is none of the options but looks like one of them. It stays in the
                group, as with torch.
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
        """Load what ``state_dict()`` gave, of this optimizer or of torch's.

        torch finds out at the next step, by a KeyError or worse, that a checkpoint belongs to
        another optimizer or to parameters of other shapes. This method refuses it at once.

        Args:
            state_dict: the checkpoint.

        Raises:
            ValueError: options or state that a step needs are missing, or state has another shape
                than its parameter. Nothing has been replaced.
            TypeError: an option is no number. Nothing has been replaced.
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
                    self.state[p]["step"] = step.to(_step_device(p, group))
                elif step is not None:
                    self.state[p]["step"] = _step_count(float(step), p, group)


def _undecorated(method: Any) -> Callable[..., Any]:
    """A method of torch's without its decorator for the compiler, unless that is tracing."""
    plain = None if torch.compiler.is_compiling() else _UNDECORATED.get(method.__func__)
    return method if plain is None else partial(plain, method.__self__)


def _engine(group: Group, table: Table, checked: Checked | None) -> Engine:
    """The engine that a group's options ask for; by default foreach, for ordinary tensors."""
    if group.get("differentiable"):
        return engines.capturable
    foreach = group.get("foreach")
    if checked is not None:
        ordinary, mixed = True, checked.mixed
    else:
        columns = table.columns.values()
        ordinary = PLAIN_TENSORS.issuperset(type(t) for column in columns for t in column)
        mixed = ordinary and engines.are_mixed(columns)
    if mixed:
        return engines.mixed
    if foreach is False or not (foreach or ordinary) or (checked and not checked.gathers):
        return engines.loop if ordinary else engines.whole
    return engines.foreach


def by_value(table: Table, values: list[Any]) -> list[tuple[Any, Table]]:
    """Rows by a value that each has, or all have: those that share one can share their scalars."""
    if values.count(values[0]) == len(values):
        return [(values[0], table)]
    rows: defaultdict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        rows[value].append(i)
    return [(value, table.select(indices)) for value, indices in rows.items()]


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _step_count(value: float, p: Tensor, group: Group) -> Tensor:
    """A step count as torch keeps it: 0-d, in float32 unless the default is float64."""
    double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    dtype = torch.float64 if double else torch.float32
    return torch.tensor(value, dtype=dtype, device=_step_device(p, group))


def _step_device(p: Tensor, group: Group) -> torch.device:
    """Where a step count is kept: on a GPU if it is counted there, as by torch's fused steps."""
    on_device = group.get("capturable") or (group.get("fused") and p.is_cuda)
    return p.device if on_device else torch.device("cpu")
