"""The one table of situations: what may befall a run, and what is to become of it.

A situation is one line: what is done to an optimizer before some of its steps. Ours is to go on
with the bits of torch's loop, to which the same is done; or to refuse the step with nothing moved,
and to go on with those bits once the cause is mended.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..cases import COUNTING, ENGINES, LINEAR, LOOPS, RULES, TABLE, TWO, Case
from . import changes
from .changes import (
    IN_ORDER,
    Change,
    Edit,
    Groups,
    Seen,
    Sub,
    all_state,
    as_type,
    batches,
    big,
    complexes,
    counted_in,
    counts,
    double_by_default,
    filled,
    gradient,
    groups,
    many,
    missing,
    mixed,
    no_gradient,
    option,
    parameter,
    state,
    struck,
    with_both,
    with_states,
)


@dataclass(frozen=True)
class Situation:
    """What is done, and what becomes of it.

    Attributes:
        change: what is done before a step, after gradients are given; it returns how to mend it,
            or an optimizer that takes the place of the old one.
        at: before which steps; one more follows.
        of: the optimizers to which it can happen, one of each rule.
        engines: those to which it can happen.
        models: what is stepped.
        options: of the optimizers; by default, of each the case with the most.
        error: what refuses the step, if anything does: a type and a pattern.
        torch_agrees: whether torch's loop raises the same.
        within: what steps are taken in, those at which something is done.
        step: how a step is taken.
    """

    change: Change = lambda optimizer: None
    at: tuple[int, ...] = (2,)
    of: Collection[str] = RULES
    engines: Collection[str] = tuple(ENGINES)
    models: tuple[Callable[[], Groups], ...] = (many, groups)
    options: dict[str, Any] | None = None
    error: tuple[type[Exception] | tuple[type[Exception], ...], str] | None = None
    torch_agrees: bool = True
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    step: Callable[[Optimizer], object] = field(default=lambda optimizer: optimizer.step())

    def case(self, name: str) -> Case:
        return Case(name, TABLE[name][-1] if self.options is None else self.options)


def refused(change: Change, error: type[Exception], pattern: str, **more: Any) -> Situation:
    return Situation(change, error=(error, pattern), **more)


LAYOUTS: dict[str, Edit] = {
    "transposed": changes.t,
    "negative bit": changes.negative,
    "strided": changes.strided,
    "offset": changes.offset,
}
SHAPES_OF: dict[str, Edit] = {
    "transposed": lambda x: x.t().contiguous(),
    "shorter": lambda x: x[:-1].clone(),
    "flat": lambda x: x.reshape(-1),
    "broadcast": lambda x: x[:, :1].clone(),
    "0-d": lambda x: x.sum(),
    "empty": lambda x: x[:0].clone(),
}
# Torch broadcasts some of these, or moves other parameters first.
SHAPE_ERROR: Any = {"error": (RuntimeError, "must match the size of tensor b"),
                    "torch_agrees": False}  # fmt: skip
OF_TWO = [case.optimizer for case in TWO]
COUNTING_RULES = [name for name in RULES if name in COUNTING]
KEYS: dict[str, Collection[str]] = {
    "momentum_buffer": ("RMSProp",),
    "square_avg": ("RMSProp",),
    "grad_avg": ("RMSProp",),
    "sum": ("AdaGrad",),
    "exp_avg": ("Adam",),
    "exp_avg_sq": ("Adam",),
    "max_exp_avg_sq": ("Adam",),
    "step": COUNTING_RULES,
}
BUFFERS: dict[str, Collection[str]] = {name: of for name, of in KEYS.items() if name != "step"} | {
    "momentum_buffer": ("SGD", "RMSProp")
}
NO_TENSOR = (RuntimeError, "`state_steps` argument must contain a list of singleton tensors")
NO_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "integers": int,
    "floats": float,
    "None": lambda step: None,
}
SOME = (0, 2, 3)  # the first step, and two one after the other

SITUATIONS: dict[str, Situation] = {
    "nothing": Situation(),
    "more than a batch": Situation(no_gradient(lambda i: i % 5 == 3), models=(batches,)),
    # Gradients
    **{f"gradient, {name}": Situation(gradient(edit), at=SOME) for name, edit in LAYOUTS.items()},
    # Torch rounds a product of such a gradient before it adds it: no multiply-add.
    "gradient, expanded": Situation(gradient(changes.expanded), at=SOME, engines=LOOPS),
    "gradient of a subclass": Situation(gradient(lambda g: g.as_subclass(Sub)), at=SOME),
    "gradient in float64": Situation(gradient(Tensor.double), at=SOME, of=("SGD",), engines=LOOPS),
    "gradient in bfloat16": Situation(
        gradient(Tensor.bfloat16), at=SOME, of=("SGD",), engines=LOOPS
    ),
    **{
        f"gradient of a big tensor, {name}": Situation(
            gradient(edit), at=(0, 1), of=OF_TWO, models=(big,)
        )
        for name, edit in LAYOUTS.items()
    },
    **{
        f"gradient of another shape, {name}": Situation(gradient(edit), at=(0, 2), **SHAPE_ERROR)
        for name, edit in SHAPES_OF.items()
    },
    **{
        f"gradient of a big tensor of another shape, {name}": Situation(
            gradient(SHAPES_OF[name]), at=(0, 1), of=OF_TWO, models=(big,), **SHAPE_ERROR
        )
        for name in ("transposed", "shorter")
    },
    "gradients infinite and NaN": Situation(
        gradient(lambda g: g.where(g < 0, torch.inf).where(g > -1, torch.nan))
    ),
    "gradients of zero": Situation(gradient(torch.zeros_like), at=SOME),
    "gradients denormal": Situation(gradient(lambda g: g * 1e-40), at=SOME),
    "gradient in its parameter's memory": Situation(
        with_both(changes.own_memory), at=SOME, engines=IN_ORDER
    ),
    "gradient in another parameter's memory": Situation(
        with_both(changes.others_memory), at=SOME, engines=IN_ORDER
    ),
    "gradients in each other's parameters": Situation(
        with_both(changes.each_others_memory),
        at=SOME,
        engines=IN_ORDER,
    ),
    "gradient of two": Situation(with_both(changes.one_gradient), at=SOME),
    "no gradients at all": Situation(no_gradient(lambda i: True), at=(0, 2)),
    "no gradients but one": Situation(no_gradient(lambda i: i != 1), at=SOME),
    "gradients that come and go": Situation(no_gradient(lambda i: i % 3 == 1), at=SOME),
    "sparse gradient": refused(
        gradient(lambda g: g.to_sparse()),
        RuntimeError,
        "does not support sparse gradients",
        at=(0, 2),
        of=("RMSProp", "Adam"),
    ),
    "sparse gradient with weight decay": refused(
        gradient(lambda g: g.to_sparse()),
        RuntimeError,
        "weight_decay option is not compatible with sparse gradients",
        of=("AdaGrad",),
    ),
    # Parameters
    "parameter of another shape under a stale gradient": Situation(
        parameter(lambda p: p.reshape(-1)[:7].clone()), at=(0, 2), **SHAPE_ERROR
    ),
    "parameter replaced": Situation(changes.replace),
    **{
        f"parameter's data {name}": Situation(parameter(edit), at=SOME)
        for name, edit in LAYOUTS.items()
    },
    "parameter's data of two exchanged": Situation(with_both(changes.exchange)),
    "parameters of one memory in a group": Situation(
        with_both(changes.one_memory), engines=IN_ORDER
    ),
    "parameters of one strided memory": Situation(
        with_both(changes.one_strided_memory), engines=IN_ORDER
    ),
    "parameter listed twice": Situation(changes.list_twice, at=(1,), engines=IN_ORDER),
    "parameter in two groups": Situation(changes.list_in_two_groups, at=(1,), models=(groups,)),
    "parameter frozen": Situation(changes.freeze),
    "parameter frozen, without gradient": Situation(
        lambda o: changes.freeze(o, alone=False), at=(2, 3, 4)
    ),
    "parameter more": Situation(changes.append),
    "parameter less": Situation(changes.remove),
    "group more": Situation(changes.add_group),
    "group less": Situation(lambda o: o.param_groups.pop(), models=(groups,)),
    "parameters of several dtypes": Situation(models=(mixed,)),
    # The fused engine multiplies pairs of real numbers, torch's SGD complex ones.
    "parameters complex": Situation(models=(complexes,), options={}, engines=LOOPS),
    "parameters complex, with roots": Situation(
        gradient(changes.strided), at=SOME, of=COUNTING_RULES, models=(complexes,), options={}
    ),
    # State
    **{f"state {name}": Situation(all_state(edit), at=(1, 3)) for name, edit in LAYOUTS.items()},
    **{
        f"state of a big tensor, {name}": Situation(
            all_state(edit), at=(1,), of=OF_TWO, models=(big,)
        )
        for name, edit in LAYOUTS.items()
    },
    "state by hand": Situation(all_state(lambda x: torch.ones_like(x) / 3)),
    "state in place": Situation(all_state(lambda x: x.mul_(0.5))),
    "state shared with other processes": Situation(all_state(Tensor.share_memory_)),
    "state deleted": Situation(lambda o: o.state.pop(struck(o)[0], None)),
    "state emptied": Situation(lambda o: o.state[struck(o)[0]].clear()),
    "state of all deleted": Situation(lambda o: o.state.clear()),
    "state reset through __setstate__": Situation(changes.reset),
    **{
        f"state without {name}": refused(missing(name), KeyError, name, of=of)
        for name, of in KEYS.items()
    },
    **{
        f"state with {name} None": Situation(
            state(name, lambda x: None), of=of, error=((AttributeError, TypeError), "NoneType")
        )
        for name, of in KEYS.items()
        if name != "step"
    },
    **{
        f"state with {name} on another device": Situation(
            state(name, lambda x: x.to("meta")),
            of=of,
            error=(RuntimeError, "device"),
            torch_agrees=False,  # its SGD goes on, and that parameter stands still
        )
        for name, of in BUFFERS.items()
    },
    "state in float64": Situation(all_state(Tensor.double), of=("SGD", "AdaGrad"), engines=LOOPS),
    "state in bfloat16": Situation(
        all_state(Tensor.bfloat16), of=("SGD", "AdaGrad"), engines=LOOPS
    ),
    "state of a subclass": Situation(all_state(lambda x: x.as_subclass(Sub))),
    "momentum_buffer deleted": Situation(missing("momentum_buffer"), of=LINEAR),
    "momentum_buffer None": Situation(state("momentum_buffer", lambda x: None), of=LINEAR),
    "momentum_buffer of all None": Situation(
        lambda o: [s.update(momentum_buffer=None) for s in o.state.values()], of=LINEAR
    ),
    **{
        f"state with {name} {how}": Situation(state(name, edit), of=of, **SHAPE_ERROR)
        for name, of in BUFFERS.items()
        for how, edit in SHAPES_OF.items()
        if how in ("transposed", "broadcast", "0-d")
    },
    "state of a big tensor of another shape": Situation(
        state("exp_avg_sq", SHAPES_OF["transposed"]),
        at=(1,),
        of=("Adam",),
        models=(big,),
        **SHAPE_ERROR,
    ),
    "state in one memory": Situation(
        with_states(lambda a, b: b.update({k: v for k, v in a.items() if k != "step"})),
        engines=IN_ORDER,
    ),
    # Step counts
    "steps all different": Situation(counts(lambda i, n: n + i), of=COUNTING_RULES),
    "steps as different as floats can be": Situation(
        counts(lambda i, n: n + 1 / (i + 3)), of=COUNTING_RULES
    ),
    "steps shared": Situation(
        lambda o: counts(lambda i, n: o.state[struck(o)[0]]["step"], every=3)(o),
        of=COUNTING_RULES,
    ),
    "steps all one tensor": Situation(
        lambda o: counts(lambda i, n: o.state[struck(o)[0]]["step"])(o), of=COUNTING_RULES
    ),
    "steps of two shared": Situation(
        with_states(lambda a, b: b.update(step=a["step"])), of=COUNTING_RULES
    ),
    **{
        f"steps {which}{name}": Situation(filled(value, every), of=COUNTING_RULES)
        for which, every in {"": 1, "in part ": 2}.items()
        for name, value in {
            "NaN": torch.nan,
            "inf": torch.inf,
            "2**24": 2.0**24,
            "beyond 2**24": 2.0**24 + 2,
            "beyond 2**30": 2.0**30,
            "a fraction": 0.5,
        }.items()
    },
    **{
        f"steps {which}negative": Situation(filled(-7.0, every), of=("AdaGrad", "RMSProp"))
        for which, every in {"": 1, "in part ": 2}.items()
    },
    "steps negative, of which Adam takes complex roots": Situation(
        filled(-7.0, 2),
        of=("Adam",),
        error=((RuntimeError, TypeError), "(?i)complex"),
    ),
    "steps on another device": Situation(
        counted_in(lambda n: n.to("meta"), 2),
        of=COUNTING_RULES,
        error=(RuntimeError, "meta"),
        torch_agrees=False,  # its RMSprop does not look at them
    ),
    "steps of two elements": Situation(
        counted_in(lambda n: torch.ones(2), 2),
        of=COUNTING_RULES,
        error=(RuntimeError, "2 elements"),
        torch_agrees=False,  # its RMSprop does not look at them
    ),
    "steps of a subclass": Situation(
        counted_in(lambda n: n.as_subclass(Sub), 2), of=COUNTING_RULES
    ),
    "steps that cannot be counted": refused(
        counted_in(Tensor.bool, 2), RuntimeError, "can't be cast", of=COUNTING_RULES
    ),
    "step zero of Adam": refused(filled(-1.0, 2), ZeroDivisionError, "division", of=("Adam",)),
    **{
        f"steps {which}in {name}": Situation(counted_in(as_type(dtype), every), of=COUNTING_RULES)
        for which, every in {"": 1, "part ": 2}.items()
        for name, dtype in {
            "int64": torch.int64,
            "int32": torch.int32,
            "float64": torch.float64,
            "float16": torch.float16,
        }.items()
    },
    "steps in float16 that count no further": Situation(
        counted_in(lambda n: torch.full_like(n, 2048.0, dtype=torch.float16), 2), of=COUNTING_RULES
    ),
    "steps of one element": Situation(counted_in(lambda n: n.reshape(1)), of=COUNTING_RULES),
    **{
        f"steps {which}that are {name}": refused(
            counted_in(kind, every), *NO_TENSOR, of=COUNTING_RULES
        )
        for which, every in {"": 1, "in part ": 2}.items()
        for name, kind in NO_TENSORS.items()
    },
    # Options
    "lr": Situation(option(lr=0.03)),
    "lr zero": Situation(option(lr=0.0)),
    "lr infinite": Situation(option(lr=torch.inf)),
    "lr NaN": Situation(option(lr=torch.nan), of=COUNTING_RULES),
    "lr a tensor that is filled": Situation(
        lambda o: (
            o.param_groups[-1]["lr"].mul_(0.5)
            if isinstance(o.param_groups[-1]["lr"], Tensor)
            else o.param_groups[-1].update(lr=torch.tensor(0.03))
        ),
        at=(1, 2, 3),
    ),
    "lr beyond float32": refused(
        option(lr=1e300), RuntimeError, "overflow", of=COUNTING_RULES, options={}
    ),
    "lr a string": refused(option(lr="0.1"), TypeError, "str|sequence"),
    "eps a string": refused(option(eps="0.1"), TypeError, "str", of=COUNTING_RULES),
    "betas of one number": refused(option(betas=(0.9,)), ValueError, "unpack", of=("Adam",)),
    "lr missing": refused(option(lr=None), KeyError, "lr"),
    "weight_decay on": Situation(option(weight_decay=0.3), options={}),
    "weight_decay off": Situation(option(weight_decay=0)),
    "maximize on": Situation(option(maximize=True), options={}),
    "betas": Situation(option(betas=(0.5, 0.6)), of=("Adam",)),
    "eps": Situation(option(eps=0.1), of=COUNTING_RULES),
    "lr_decay": Situation(option(lr_decay=0.5), of=("AdaGrad",)),
    "alpha": Situation(option(alpha=0.5), of=("RMSProp",)),
    "decoupled_weight_decay on": Situation(
        option(decoupled_weight_decay=True, weight_decay=0.1), of=("Adam",), options={}
    ),
    "momentum on": Situation(option(momentum=0.5), of=("SGD",), options={}),
    "momentum off": Situation(option(momentum=0), of=("Momentum", "RMSProp")),
    "momentum negative": Situation(option(momentum=-0.5), of=("SGD", "RMSProp"), options={}),
    "nesterov on": Situation(option(nesterov=True), of=("Momentum",), options={}),
    "dampening on": Situation(option(dampening=0.5), of=("Momentum",), options={}),
    "centered off": Situation(option(centered=False), of=("RMSProp",)),
    "amsgrad off": Situation(option(amsgrad=False), of=("Adam",)),
    "amsgrad on": refused(
        option(amsgrad=True), KeyError, "max_exp_avg_sq", of=("Adam",), options={}
    ),
    "amsgrad on before the first step": Situation(
        option(amsgrad=True), at=(0,), of=("Adam",), options={}
    ),
    "momentum on in RMSProp": refused(
        option(momentum=0.5), KeyError, "momentum_buffer", of=("RMSProp",), options={}
    ),
    "centered on": refused(
        option(centered=True), KeyError, "grad_avg", of=("RMSProp",), options={}
    ),
    "one group fused": Situation(
        changes.fused_in_part, models=(groups,), of=LINEAR, engines=("loop", "foreach", "default")
    ),
    # What surrounds a step
    "a copy goes on": Situation(copy.deepcopy),
    "a copy through pickle goes on": Situation(lambda o: pickle.loads(pickle.dumps(o))),
    "own checkpoint loaded": Situation(changes.load),
    "hook before the step": Situation(lambda o: o.register_step_pre_hook(changes.double_gradients)),
    "hook after the step": Situation(lambda o: o.register_step_post_hook(changes.halve)),
    "closure": Situation(step=changes.closure),
    "scaler that finds infinity": Situation(step=changes.scaled),
    "in inference mode": Situation(at=(2, 3), within=torch.inference_mode),
    "in no_grad": Situation(at=SOME, within=torch.no_grad),
    "in enable_grad": Situation(at=SOME, within=torch.enable_grad),
    "in a function mode": Situation(at=SOME, within=Seen),
    # Torch's RMSprop makes its step counts there.
    "in a device context": Situation(at=(2, 3), within=lambda: torch.device("meta")),
    "in a profiler": Situation(
        at=SOME, models=(groups,), within=lambda: torch.autograd.profiler.profile(use_kineto=False)
    ),
    # Torch counts fused steps in float32 all the same, and so do we.
    "in float64 by default from the start": Situation(
        at=SOME, engines=LOOPS, within=double_by_default
    ),
    "in float64 by default": Situation(at=(2, 3), within=double_by_default),
}

# What else may move parameters, equal to torch's loop but for rounding; and what it is tried with.
INEXACT: dict[str, dict[str, Any]] = {
    "differentiable": {"differentiable": True},
    "capturable": {"capturable": True, "fused": True},
}
UP_TO_ROUNDING = [
    "nothing",
    "gradient, transposed",
    "gradient, negative bit",
    "gradient, expanded",
    "gradient of another shape, broadcast",
    "gradient of another shape, transposed",
    "gradients infinite and NaN",
    "gradients that come and go",
    "no gradients at all",
    "parameter of another shape under a stale gradient",
    "parameter replaced",
    "parameter more",
    "parameter in two groups",
    "state transposed",
    "state deleted",
    "state with exp_avg broadcast",
    "state without exp_avg",
    "state without step",
    "momentum_buffer None",
    "steps all different",
    "steps of two shared",
    "steps in part NaN",
    "steps in int64",
    "lr a tensor that is filled",
    "amsgrad on",
    "momentum on",
    "a copy goes on",
]
