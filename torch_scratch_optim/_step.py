"""One step of an optimizer: check tensors, choose engines, compile kernels; then move and count.

Every group is prepared before anything moves, so that an error leaves all of them as they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import engines
from ._capture import check_capturable, is_capturing
from ._options import Group, check_contradictions
from ._state import count, count_on_device, is_shared, next_counts, states
from ._tensors import Checked, check, check_tensors, local_and_real
from .engines import PLAIN_TENSORS, Engine, Scalars, Table, grouped

if TYPE_CHECKING:
    from .optimizer import ScratchOptimizer

Update = Callable[[], None]


class Rows(NamedTuple):
    """Parameters of a group that are updated together.

    Attributes:
        group: the group.
        table: the parameters, their gradients and their state.
        steps: the step counts, if the optimizer counts steps.
        new: by parameter, the state that this step makes.
        first: of each parameter, whether this is its first step; [False] if it is for none.
        checked: what is known of the tensors, if they are plain ones.
        sparse_engine: the engine, if the gradients are sparse.
    """

    group: Group
    table: Table
    steps: list[Tensor]
    new: dict[Tensor, Group]
    first: list[bool]
    checked: Checked | None = None
    sparse_engine: Engine | None = None


def take_step(optimizer: ScratchOptimizer) -> None:
    """Update every parameter that has a gradient."""
    updates: list[Update] = []
    counted: set[int] = set()
    for index in range(len(optimizer.param_groups)):
        _prepare(optimizer, index, updates, counted)
    engines.run_all(updates)


def _prepare(
    optimizer: ScratchOptimizer, index: int, updates: list[Update], counted: set[int]
) -> None:
    """Add to `updates` what remains to be done of a group's step when it can no longer fail."""
    group = optimizer.param_groups[index]
    params: list[Tensor] = []
    grads: list[Tensor] = []
    for p in group["params"]:
        if (g := p.grad) is not None:
            params.append(p)
            grads.append(g)
    if group.get("capturable"):
        # Of other optimizers torch ignores it, or its compiler sets it.
        if "capturable" in optimizer.defaults:
            check_capturable(group, params, optimizer.state)
    elif optimizer.counts_steps and is_capturing():
        raise RuntimeError(
            "Attempting CUDA graph capture of step() for an instance of "
            f"{type(optimizer).__name__} but param_groups' capturable is False."
        )
    if not params:
        return
    symbols = optimizer.columns(group)
    state, new = states(optimizer, group, params, symbols)
    columns = {"p": params, "g": grads}
    for symbol, name in symbols.items():
        columns[symbol] = [own[name] for own in state]
    steps = [own["step"] for own in state] if optimizer.counts_steps else []
    if len(optimizer.param_groups) > 1 and not torch.compiler.is_compiling():
        ids = set(map(id, steps))
        if not counted.isdisjoint(ids):  # counts that groups share are read when they are due
            engines.run_all(updates)
            updates.clear()
        counted |= ids
    first = [p in new for p in params] if new else [False]
    checked = _check(optimizer, index, columns, steps)
    if checked is not None:
        table = Table(columns, checked.sizes)
        updates.append(_update(optimizer, Rows(group, table, steps, new, first, checked)))
        return
    table = Table(columns)
    sparse = [g.is_sparse for g in grads]
    engine = optimizer._sparse_engine(group) if True in sparse else None
    for selected, own_engine in (sparse, engine), ([not s for s in sparse], None):
        if True in selected:
            part = local_and_real(optimizer, group, table.where(selected), new)
            own = [*compress(first, selected)] if new else first
            counts = [*compress(steps, selected)]
            rows = Rows(group, part, counts, new, own, sparse_engine=own_engine)
            updates.append(_update(optimizer, rows))


def _check(
    optimizer: ScratchOptimizer, index: int, columns: dict[str, list[Tensor]], steps: list[Tensor]
) -> Checked | None:
    """Refuse tensors that no engine may update; return what is known of plain ones."""
    tensors = [t for column in columns.values() for t in column]
    tensors += steps
    compiling = torch.compiler.is_compiling()
    checked: Checked | None = None if compiling else optimizer._checked.get(index)
    if checked is None or not checked.holds(columns, tensors):
        check_tensors(optimizer, optimizer.param_groups[index], columns)
        checked = None if compiling else check(columns, steps, tensors)
        if checked is not None:
            optimizer._checked[index] = checked
    return checked


def _update(optimizer: ScratchOptimizer, rows: Rows) -> Update:
    """Choose the engine and its scalars, compile what it needs, and return what is left to do."""
    group, table, checked = rows.group, rows.table, rows.checked
    own_engine = None if rows.sparse_engine else optimizer.engine(group)
    engine = rows.sparse_engine or own_engine
    on_gpu = checked if checked is not None and checked.on_gpu else None
    capturable, fused = group.get("capturable"), group.get("fused")
    if fused and group.get("differentiable"):
        check_contradictions(group)
    if on_gpu and not engine and (fused or capturable):
        update = _by_kernel_on_gpu(optimizer, rows, on_gpu)
        if update:
            return update
    # GradScaler sets `found_inf` and `grad_scale` for the time of a step.
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    if found_inf is not None and found_inf.item():
        return partial(engines.run_all, [])
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    gradient = optimizer._gradient(group, None if scale is None else 1 / scale.item())
    if capturable:
        move = partial(_by_tensors_on_device, optimizer, rows, gradient)
        return partial(_finish, optimizer, rows.new, move, [])
    scalars = _scalars(optimizer, rows)
    if own_engine is None and not group.get("differentiable"):  # those may want tensors
        most = engines.FLOAT_MAX if fused else engines.HALF_MAX
        if engines.are_unusual((gradient, *scalars), most):
            gradient = engines.to_python_scalars(gradient)
            # Rows that share scalars still do: they are gathered by that.
            known = {id(own): engines.to_python_scalars(own) for own in scalars}
            scalars = [known[id(own)] for own in scalars]
            if engines.are_unusual((gradient, *scalars), most):
                rule = engines.descending(optimizer.rule, gradient)
                engines.try_out(_engine(group, table, checked), rule, table, scalars)
    planned = None
    default = not engine and len(scalars) == 1 and group.get("foreach") is None
    if fused and not engine:
        from . import _fused  # takes as long as all the rest

        planned = _fused.plan(optimizer.rule, table, scalars, gradient, checked, rows.steps)
    elif on_gpu and default and not group.get("differentiable"):
        from . import _fused

        given = table, scalars[0], gradient, on_gpu, rows.steps
        planned = _fused.plan_default(optimizer.rule, *given)
    if planned is None:
        engine = engine or _engine(group, table, checked)
        rule = engines.descending(optimizer.rule, gradient)
        planned = partial(engines.run, engine, rule, table, scalars), rows.steps
    return partial(_finish, optimizer, rows.new, *planned)


def _finish(
    optimizer: ScratchOptimizer, new: dict[Tensor, Group], move: Update, steps: list[Tensor]
) -> None:
    """Move, keep the new state, and count what was moved; if it fails, do neither."""
    for p in new:
        if p not in optimizer.state and not isinstance(optimizer.state, defaultdict):
            raise KeyError(p)  # a plain dict has no place for it
    move()
    for p, state in new.items():
        optimizer.state[p].update(state)
    if steps:
        count(steps)


def _engine(group: Group, table: Table, checked: Checked | None) -> Engine:
    """The engine that a group's options ask for; by default foreach, for plain tensors."""
    if group.get("differentiable"):
        return engines.capturable
    foreach, columns = group.get("foreach"), table.columns.values()
    plain = checked is not None or PLAIN_TENSORS.issuperset(map(type, chain(*columns)))
    mixed = checked.mixed if checked else plain and engines.are_mixed(columns)
    if mixed:
        return engines.mixed
    if foreach is False or not (foreach or plain) or (checked and not checked.gathers):
        return engines.loop if plain else engines.whole
    return engines.foreach


def _scalars(optimizer: ScratchOptimizer, rows: Rows) -> list[Scalars]:
    """The rule's scalars for all rows, or those of each row where steps differ."""
    values: list[Any] = rows.first
    if optimizer.counts_steps:
        values = (rows.checked.next_counts if rows.checked else next_counts)(rows.steps)
    if values.count(values[0]) == len(values):
        return [_scalars_at(optimizer, values[0], rows.group)]
    at = {value: _scalars_at(optimizer, value, rows.group) for value in dict.fromkeys(values)}
    return [at[value] for value in values]


def _scalars_at(optimizer: ScratchOptimizer, value: Any, group: Group) -> Scalars:
    """The rule's scalars at a step count, or at a first or a later step."""
    if optimizer.counts_steps:
        return optimizer.scalars(value, group)
    return optimizer.scalars(None, group) | {"first": value}


def _by_kernel_on_gpu(optimizer: ScratchOptimizer, rows: Rows, checked: Checked) -> Update | None:
    """A step by kernels that count on a GPU; None if they cannot take the tensors."""
    from . import _fused

    group, table = rows.group, rows.table
    device = table.columns["p"][0].device
    if is_shared(rows.steps) or checked.steps - {(device, torch.float32)}:
        return None
    found_inf, scale = (getattr(optimizer, name, None) for name in ("found_inf", "grad_scale"))
    if found_inf is not None:
        if rows.new and found_inf.item():  # a first step must remain a first step
            return partial(engines.run_all, [])
        found_inf = found_inf.to(device, torch.float32)
    options = group if scale is None else group | {"grad_scale": scale.to(device)}

    def scalars(first: bool | None, t: Any, group: Group) -> dict[str, Any]:
        own = optimizer.scalars(t, group) | ({} if first is None else {"first": first})
        scale = group.get("grad_scale")
        return own | optimizer._gradient(group, None if scale is None else 1 / scale)

    moves: list[Update] = []
    for first, part in _by_first(optimizer, rows):
        # While a graph is captured nothing can be compiled, so make what later steps need, too.
        for flag in [False, True] if first else [first]:
            given = options, part, checked, rows.steps, found_inf, flag
            move = _fused.plan_on_device(optimizer.rule, partial(scalars, flag), *given)
        if move is None:
            return None
        moves.append(move)
    return partial(_finish, optimizer, rows.new, partial(engines.run_all, moves), [])


def _by_tensors_on_device(
    optimizer: ScratchOptimizer, rows: Rows, gradient: dict[str, Any]
) -> None:
    """Count on the device by tensor operations; what follows from the counts stays there."""
    engine = optimizer.engine(rows.group)
    if engine is None or not getattr(engine, "takes_tensors", False):
        engine = engines.capturable
    rule = engines.descending(optimizer.rule, gradient)
    # A compiler asks for it also where step counts are on the CPU, and the options need not be.
    device = rows.table.columns["p"][0].device
    t = count_on_device(rows.steps, device) if optimizer.counts_steps else None
    for first, part in _by_first(optimizer, rows):
        scalars = optimizer.scalars(t, rows.group)
        engine(rule, part, scalars if first is None else scalars | {"first": first})


def _by_first(optimizer: ScratchOptimizer, rows: Rows) -> list[tuple[bool | None, Table]]:
    """Rows by whether this is their first step, which the rule is told if no steps are counted."""
    if optimizer.counts_steps:
        return [(None, rows.table)]
    if len(set(rows.first)) == 1:
        return [(rows.first[0], rows.table)]
    return [(first, rows.table.select(indices)) for first, indices in grouped(rows.first).items()]
