"""The one table of situations: what may befall a run, and what is to become of it.

A situation is one line: what is done to an optimizer before some of its steps. Ours is to go on
with the bits of torch's loop, to which the same is done; or to refuse the step with nothing moved,
and to go on with those bits once the cause is mended.
"""

from __future__ import annotations

import copy
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torch_scratch_optim import engines

from . import ieee
from .cases import PAIRS, TABLE, Case, leaves, same_bits

LINEAR = ("SGD", "Momentum")
COUNTING = ("AdaGrad", "RMSProp", "Adam", "AdamW")
ADAMS = ("Adam", "AdamW")
# One without step counts, whose first step is another, and one with, which takes a root.
TWO = ("Momentum", "Adam")

ENGINES: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "default": {},
    "fused": {"fused": True},
}
# Whatever moves elements of one memory one after the other, as torch's loop does.
IN_ORDER = ("loop", "fused")
# Whatever computes in the dtypes in which torch's loop computes.
LOOPS = ("loop", "foreach", "default")

Groups = list[dict[str, Any]]
Mend = Callable[[], object]
# It returns how to mend what it did, or an optimizer that takes the place of the old one.
Change = Callable[[Optimizer], object]
Edit = Callable[[Tensor], Any]


# ---- What is stepped


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=random, dtype=wide).to(dtype)


def _params(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    made = [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    return [p.requires_grad_() for p in made]


# What happens, happens to the parameters of this shape; neither of them is the first to move.
SHAPE = (4, 6)
SHAPES = [(5,), SHAPE, (), SHAPE, (0, 3)]


def many() -> Groups:
    """One more than are left to the loop, and one on each side of what is small."""
    rest = [(i + 1,) for i in range(engines.FEW + 1 - len(SHAPES))]
    return [{"params": _params(*SHAPES, *rest, (engines.SMALL,), (engines.SMALL + 1,))}]


def groups() -> Groups:
    """Two groups, of which the second is struck: as many small tensors as are left to the loop."""
    first = [normal(*shape, seed=9).requires_grad_() for shape in [(7,), (3, 2)]]
    rest = [(i + 1,) for i in range(engines.FEW - len(SHAPES))]
    return [{"params": first}, {"params": _params(*SHAPES, *rest)}]


def batches() -> Groups:
    """Small tensors that together are more than a batch, as many on each side of its end."""
    largest = engines.GRAIN // engines.SMALL + 1
    return [{"params": _params(*SHAPES, *[(engines.SMALL,)] * largest, *[(9,)] * engines.FEW)}]


def big() -> Groups:
    """A tensor that is cut into blocks, one that just is not, and around what a thread takes."""
    rows = engines.CPU_BLOCK // 1024
    sizes = [(engines.GRAIN,), (rows + 6, 1024), (engines.GRAIN + 1,), (rows, 1024)]
    return [{"params": _params(*sizes)}]


def mixed() -> Groups:
    wide = _params(*SHAPES, dtype=torch.float64)
    return [{"params": [p for both in zip(_params(*SHAPES), wide, strict=True) for p in both]}]


def complexes() -> Groups:
    return [{"params": _params(*SHAPES, (6, 4), dtype=torch.complex64)}]


def struck(optimizer: Optimizer) -> list[Tensor]:
    """The two parameters to which something happens: of one shape, and larger than any other."""
    most = max(p.numel() for p in leaves(optimizer) if p.ndim == 2)
    first = next(i for i, p in enumerate(leaves(optimizer)) if p.ndim == 2 and p.numel() == most)
    own = [p for p in leaves(optimizer)[first:] if p.ndim == 2 and p.shape[1] == SHAPE[1]]
    return own or [leaves(optimizer)[first]]


# ---- What is done


def gradient(edit: Edit) -> Change:
    """Replace a gradient, whatever its shape or dtype."""

    def change(optimizer: Optimizer) -> Mend:
        p, old = struck(optimizer)[0], struck(optimizer)[0].grad
        assert old is not None
        assign(p, edit(old))
        return lambda: assign(p, old)

    return change


def assign(p: Tensor, g: Tensor) -> None:
    kept, p.grad = p.data, None
    if g.shape != p.shape:
        p.data = torch.empty_like(g, dtype=p.dtype)
    if g.dtype != p.dtype:
        p.grad_dtype = None  # any
    p.grad = g
    p.data = kept


def state(name: str, edit: Edit) -> Change:
    """Replace what is kept of a parameter under a name."""

    def change(optimizer: Optimizer) -> Mend:
        own = optimizer.state[struck(optimizer)[0]]
        old = own[name]
        own[name] = edit(old)
        return lambda: own.update({name: old})

    return change


def all_state(edit: Edit) -> Change:
    """Edit all that is kept of a parameter but its step count."""

    def change(optimizer: Optimizer) -> None:
        own = optimizer.state.get(struck(optimizer)[0], {})
        for name in own.keys() - {"step"}:
            own[name] = edit(own[name])

    return change


def missing(name: str) -> Change:
    """Delete what is kept of a parameter under a name."""

    def change(optimizer: Optimizer) -> Mend:
        own = optimizer.state[struck(optimizer)[0]]
        kept = dict(own)
        del own[name]

        def mend() -> None:
            own.clear()
            own.update(kept)

        return mend

    return change


def counts(edit: Callable[[int, Tensor], Any], every: int = 1) -> Change:
    """Replace the step counts of every nth parameter."""

    def change(optimizer: Optimizer) -> Mend:
        states = [optimizer.state[p] for p in leaves(optimizer) if p in optimizer.state]
        old = [state["step"] for state in states]
        for i in range(every - 1, len(states), every):
            states[i]["step"] = edit(i, old[i])

        def mend() -> None:
            for state, step in zip(states, old, strict=True):
                state["step"] = step

        return mend

    return change


def option(**options: Any) -> Change:
    """Edit the options of the last group by hand; what is to be None, is deleted."""

    def change(optimizer: Optimizer) -> Mend:
        group = optimizer.param_groups[-1]
        old = {name: group[name] for name in options if name in group}
        group.update(options)
        for name in [name for name, value in options.items() if value is None]:
            del group[name]
        return lambda: group.update(old)

    return change


def parameter(edit: Edit) -> Change:
    """Replace a parameter's data and leave all else as it is."""

    def change(optimizer: Optimizer) -> Mend:
        p, old = struck(optimizer)[0], struck(optimizer)[0].data
        p.data = edit(old)
        return lambda: setattr(p, "data", old)

    return change


def filled(value: float, every: int = 1) -> Change:
    """Set the step counts of every nth parameter."""
    return counts(lambda i, step: torch.full_like(step, value), every)


def counted_in(kind: Callable[[Tensor], Any], every: int = 1) -> Change:
    """Keep the step counts of every nth parameter otherwise."""
    return counts(lambda i, step: kind(step), every)


def as_type(dtype: torch.dtype) -> Edit:
    return lambda tensor: tensor.to(dtype)


def no_gradient(of: Callable[[int], bool]) -> Change:
    def change(optimizer: Optimizer) -> None:
        for i, p in enumerate(leaves(optimizer)):
            if of(i):
                p.grad = None

    return change


def with_both(do: Callable[[Tensor, Tensor], object]) -> Change:
    """Do something to two parameters of one shape."""

    def change(optimizer: Optimizer) -> None:
        do(*struck(optimizer)[:2])

    return change


def with_states(do: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    def change(optimizer: Optimizer) -> None:
        first, second = struck(optimizer)[:2]
        do(optimizer.state[first], optimizer.state[second])

    return change


def _append(optimizer: Optimizer) -> None:
    new = normal(3, 2, seed=50).requires_grad_(leaves(optimizer)[0].requires_grad)
    new.grad = normal(3, 2, seed=51)
    optimizer.param_groups[-1]["params"].append(new)


def _add_group(optimizer: Optimizer) -> None:
    new = normal(3, 2, seed=52).requires_grad_()
    new.grad = normal(3, 2, seed=53)
    optimizer.add_param_group({"params": [new], "lr": 0.03, "weight_decay": 0.2})


def _list_twice(optimizer: Optimizer) -> None:
    group = optimizer.param_groups[-1]["params"]
    if not any(p is group[-1] for p in group[:-1]):
        group.append(struck(optimizer)[0])


def _list_in_two_groups(optimizer: Optimizer) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    if not any(p is q for p in first for q in second):
        first.append(struck(optimizer)[0])


def _remove(optimizer: Optimizer) -> None:
    group, p = optimizer.param_groups[-1]["params"], struck(optimizer)[0]
    del group[next(i for i, q in enumerate(group) if q is p)]


def _freeze(optimizer: Optimizer, alone: bool = True) -> None:
    p = struck(optimizer)[0].requires_grad_(False)
    if not alone:
        p.grad = None


def _own_memory(p: Tensor, q: Tensor) -> None:
    p.grad = p.detach()


def _others_memory(p: Tensor, q: Tensor) -> None:
    q.grad = p.detach()


def _each_others_memory(p: Tensor, q: Tensor) -> None:
    p.grad, q.grad = q.detach(), p.detach()


def _one_gradient(p: Tensor, q: Tensor) -> None:
    q.grad = p.grad


def _one_memory(p: Tensor, q: Tensor) -> None:
    q.data = p.data


def _one_strided_memory(p: Tensor, q: Tensor) -> None:
    p.data = q.data = _strided(p.data)


def _exchange(p: Tensor, q: Tensor) -> None:
    p.data, q.data = q.data, p.data


def _replace(optimizer: Optimizer) -> None:
    p = struck(optimizer)[0]
    p.data, p.grad = normal(3, 5, seed=60), None
    p.grad = normal(3, 5, seed=61)
    optimizer.state.pop(p, None)


def _reset(optimizer: Optimizer) -> None:
    optimizer.__setstate__({"state": defaultdict(dict)})


def _load(optimizer: Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def _fused_in_part(optimizer: Optimizer) -> None:
    if type(optimizer).__module__.startswith("torch_scratch_optim"):
        optimizer.param_groups[0].update(fused=True, foreach=None)


def _double_gradients(optimizer: Optimizer, *_: Any) -> None:
    for p in leaves(optimizer):
        if p.grad is not None:
            p.grad = p.grad * 2


def _halve(optimizer: Optimizer, *_: Any) -> None:
    with torch.no_grad():
        for p in leaves(optimizer):
            p.mul_(0.5)


def _scaled(optimizer: Optimizer) -> None:
    """A step through a scaler, gradients infinite at the third."""
    if not hasattr(optimizer, "scaler"):
        optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]  # ours for the test
        optimizer.seen = 0  # type: ignore[attr-defined]  # ours for the test
    scaler: Any = optimizer.scaler  # type: ignore[attr-defined]  # ours for the test
    scale = scaler.scale(torch.ones(()))
    for p in leaves(optimizer):
        if p.grad is not None:
            p.grad = p.grad * scale
    if optimizer.seen == 2:  # type: ignore[attr-defined]  # ours for the test
        grad = struck(optimizer)[0].grad
        assert grad is not None
        grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    optimizer.seen += 1  # type: ignore[attr-defined]  # ours for the test


def _closure(optimizer: Optimizer) -> None:
    def closure() -> float:
        assert torch.is_grad_enabled()
        _double_gradients(optimizer)
        return 3.5

    assert optimizer.step(closure) == 3.5


class Seen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def correct_roots() -> Iterator[None]:
    """Torch's own square root on a CPU is not rounded correctly; the fused engine's is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "sqrt", ieee.sqrt)
        patch.setattr(Tensor, "sqrt_", lambda t: t.copy_(ieee.sqrt(t)))
        yield


def roots_of(engine: str, optimizer: str) -> AbstractContextManager[None]:
    """What torch's loop must run in to have the bits of an engine."""
    return correct_roots() if engine == "fused" and optimizer not in LINEAR else nullcontext()


def assert_same(ours: Optimizer, theirs: Optimizer, context: object) -> None:
    """All parameters and all state have the same bits, one NaN as good as another."""
    assert len(leaves(ours)) == len(leaves(theirs))
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(theirs), strict=True)):
        mine = {"p": p, **ours.state.get(p, {})}
        their = {"p": q, **theirs.state.get(q, {})}
        assert mine.keys() == their.keys(), f"state of parameter {i}, {context}"
        for name, value in their.items():
            if isinstance(value, Tensor):
                a, b = mine[name].detach().resolve_neg(), value.detach().resolve_neg()
                wrong = 0 if same_bits(a, b) else ieee.differing(a, b)
                assert not wrong, f"{wrong} numbers of {name} of parameter {i} differ, {context}"
            else:
                assert mine[name] == value


@contextmanager
def one_thread() -> Iterator[None]:
    """What is small gains nothing by threads, and waits for them where workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Sub(Tensor):
    """A tensor of a subclass."""


# ---- The table


@dataclass(frozen=True)
class Situation:
    """What is done, and what becomes of it.

    Attributes:
        change: what is done before a step, after gradients are given; it returns how to mend it,
            or an optimizer that takes the place of the old one.
        at: before which steps.
        of: the optimizers to which it can happen.
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
    of: tuple[str, ...] = tuple(PAIRS)
    engines: tuple[str, ...] = tuple(ENGINES)
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


def _t(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def _negative(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def _strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def _offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)


def _expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


LAYOUTS: dict[str, Edit] = {
    "transposed": _t,
    "negative bit": _negative,
    "strided": _strided,
    "offset": _offset,
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
KEYS = {
    "momentum_buffer": ("RMSProp",),
    "square_avg": ("RMSProp",),
    "grad_avg": ("RMSProp",),
    "sum": ("AdaGrad",),
    "exp_avg": ADAMS,
    "exp_avg_sq": ADAMS,
    "max_exp_avg_sq": ADAMS,
    "step": COUNTING,
}
BUFFERS = {name: of for name, of in KEYS.items() if name != "step"} | {
    "momentum_buffer": ("SGD", "Momentum", "RMSProp")
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
    "gradient, expanded": Situation(gradient(_expanded), at=SOME, engines=LOOPS),
    "gradient of a subclass": Situation(gradient(lambda g: g.as_subclass(Sub)), at=SOME),
    "gradient in float64": Situation(
        gradient(Tensor.double), at=SOME, of=("SGD", "Momentum"), engines=LOOPS
    ),
    "gradient in bfloat16": Situation(
        gradient(Tensor.bfloat16), at=SOME, of=("SGD", "Momentum"), engines=LOOPS
    ),
    **{
        f"gradient of a big tensor, {name}": Situation(
            gradient(edit), at=(0, 1), of=TWO, models=(big,)
        )
        for name, edit in LAYOUTS.items()
    },
    **{
        f"gradient of another shape, {name}": Situation(gradient(edit), at=(0, 2), **SHAPE_ERROR)
        for name, edit in SHAPES_OF.items()
    },
    **{
        f"gradient of a big tensor of another shape, {name}": Situation(
            gradient(SHAPES_OF[name]), at=(0, 1), of=TWO, models=(big,), **SHAPE_ERROR
        )
        for name in ("transposed", "shorter")
    },
    "gradients infinite and NaN": Situation(
        gradient(lambda g: g.where(g < 0, torch.inf).where(g > -1, torch.nan))
    ),
    "gradients of zero": Situation(gradient(torch.zeros_like), at=SOME),
    "gradients denormal": Situation(gradient(lambda g: g * 1e-40), at=SOME),
    "gradient in its parameter's memory": Situation(
        with_both(_own_memory), at=SOME, engines=IN_ORDER
    ),
    "gradient in another parameter's memory": Situation(
        with_both(_others_memory), at=SOME, engines=IN_ORDER
    ),
    "gradients in each other's parameters": Situation(
        with_both(_each_others_memory),
        at=SOME,
        engines=IN_ORDER,
    ),
    "gradient of two": Situation(with_both(_one_gradient), at=SOME),
    "no gradients at all": Situation(no_gradient(lambda i: True), at=(0, 2)),
    "no gradients but one": Situation(no_gradient(lambda i: i != 1), at=SOME),
    "gradients that come and go": Situation(no_gradient(lambda i: i % 3 == 1), at=SOME),
    "sparse gradient": refused(
        gradient(lambda g: g.to_sparse()),
        RuntimeError,
        "does not support sparse gradients",
        at=(0, 2),
        of=("RMSProp", "Adam", "AdamW"),
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
    "parameter replaced": Situation(_replace),
    **{
        f"parameter's data {name}": Situation(parameter(edit), at=SOME)
        for name, edit in LAYOUTS.items()
    },
    "parameter's data of two exchanged": Situation(with_both(_exchange)),
    "parameters of one memory in a group": Situation(with_both(_one_memory), engines=IN_ORDER),
    "parameters of one strided memory": Situation(with_both(_one_strided_memory), engines=IN_ORDER),
    "parameter listed twice": Situation(_list_twice, at=(1,), engines=IN_ORDER),
    "parameter in two groups": Situation(_list_in_two_groups, at=(1,), models=(groups,)),
    "parameter frozen": Situation(_freeze),
    "parameter frozen, without gradient": Situation(
        lambda o: _freeze(o, alone=False), at=(2, 3, 4)
    ),
    "parameter more": Situation(_append),
    "parameter less": Situation(_remove),
    "group more": Situation(_add_group),
    "group less": Situation(lambda o: o.param_groups.pop(), models=(groups,)),
    "parameters of several dtypes": Situation(models=(mixed,)),
    # The fused engine multiplies pairs of real numbers, torch's SGD complex ones.
    "parameters complex": Situation(models=(complexes,), options={}, engines=LOOPS),
    "parameters complex, with roots": Situation(
        gradient(_strided), at=SOME, of=COUNTING, models=(complexes,), options={}
    ),
    # State
    **{f"state {name}": Situation(all_state(edit), at=(1, 3)) for name, edit in LAYOUTS.items()},
    **{
        f"state of a big tensor, {name}": Situation(all_state(edit), at=(1,), of=TWO, models=(big,))
        for name, edit in LAYOUTS.items()
    },
    "state by hand": Situation(all_state(lambda x: torch.ones_like(x) / 3)),
    "state in place": Situation(all_state(lambda x: x.mul_(0.5))),
    "state shared with other processes": Situation(all_state(Tensor.share_memory_)),
    "state deleted": Situation(lambda o: o.state.pop(struck(o)[0], None)),
    "state emptied": Situation(lambda o: o.state[struck(o)[0]].clear()),
    "state of all deleted": Situation(lambda o: o.state.clear()),
    "state reset through __setstate__": Situation(_reset),
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
    "state in float64": Situation(
        all_state(Tensor.double), of=("SGD", "Momentum", "AdaGrad"), engines=LOOPS
    ),
    "state in bfloat16": Situation(
        all_state(Tensor.bfloat16), of=("SGD", "Momentum", "AdaGrad"), engines=LOOPS
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
    "steps all different": Situation(counts(lambda i, n: n + i), of=COUNTING),
    "steps as different as floats can be": Situation(
        counts(lambda i, n: n + 1 / (i + 3)), of=COUNTING
    ),
    "steps shared": Situation(
        lambda o: counts(lambda i, n: o.state[struck(o)[0]]["step"], every=3)(o),
        of=COUNTING,
    ),
    "steps all one tensor": Situation(
        lambda o: counts(lambda i, n: o.state[struck(o)[0]]["step"])(o), of=COUNTING
    ),
    "steps of two shared": Situation(
        with_states(lambda a, b: b.update(step=a["step"])), of=COUNTING
    ),
    **{
        f"steps {which}{name}": Situation(filled(value, every), of=COUNTING)
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
        of=ADAMS,
        error=((RuntimeError, TypeError), "(?i)complex"),
    ),
    "steps on another device": Situation(
        counted_in(lambda n: n.to("meta"), 2),
        of=COUNTING,
        error=(RuntimeError, "meta"),
        torch_agrees=False,  # its RMSprop does not look at them
    ),
    "steps of two elements": Situation(
        counted_in(lambda n: torch.ones(2), 2),
        of=COUNTING,
        error=(RuntimeError, "2 elements"),
        torch_agrees=False,  # its RMSprop does not look at them
    ),
    "steps of a subclass": Situation(counted_in(lambda n: n.as_subclass(Sub), 2), of=COUNTING),
    "steps that cannot be counted": refused(
        counted_in(Tensor.bool, 2), RuntimeError, "can't be cast", of=COUNTING
    ),
    "step zero of Adam": refused(filled(-1.0, 2), ZeroDivisionError, "division", of=ADAMS),
    **{
        f"steps {which}in {name}": Situation(counted_in(as_type(dtype), every), of=COUNTING)
        for which, every in {"": 1, "part ": 2}.items()
        for name, dtype in {
            "int64": torch.int64,
            "int32": torch.int32,
            "float64": torch.float64,
            "float16": torch.float16,
        }.items()
    },
    "steps in float16 that count no further": Situation(
        counted_in(lambda n: torch.full_like(n, 2048.0, dtype=torch.float16), 2), of=COUNTING
    ),
    "steps of one element": Situation(counted_in(lambda n: n.reshape(1)), of=COUNTING),
    **{
        f"steps {which}that are {name}": refused(counted_in(kind, every), *NO_TENSOR, of=COUNTING)
        for which, every in {"": 1, "in part ": 2}.items()
        for name, kind in NO_TENSORS.items()
    },
    # Options
    "lr": Situation(option(lr=0.03)),
    "lr zero": Situation(option(lr=0.0)),
    "lr infinite": Situation(option(lr=torch.inf)),
    "lr NaN": Situation(option(lr=torch.nan), of=COUNTING),
    "lr a tensor that is filled": Situation(
        lambda o: (
            o.param_groups[-1]["lr"].mul_(0.5)
            if isinstance(o.param_groups[-1]["lr"], Tensor)
            else o.param_groups[-1].update(lr=torch.tensor(0.03))
        ),
        at=(1, 2, 3),
    ),
    "lr beyond float32": refused(
        option(lr=1e300), RuntimeError, "overflow", of=COUNTING, options={}
    ),
    "lr a string": refused(option(lr="0.1"), TypeError, "str|sequence"),
    "eps a string": refused(option(eps="0.1"), TypeError, "str", of=COUNTING),
    "betas of one number": refused(option(betas=(0.9,)), ValueError, "unpack", of=ADAMS),
    "lr missing": refused(option(lr=None), KeyError, "lr"),
    "weight_decay on": Situation(option(weight_decay=0.3), options={}),
    "weight_decay off": Situation(option(weight_decay=0)),
    "maximize on": Situation(option(maximize=True), options={}),
    "betas": Situation(option(betas=(0.5, 0.6)), of=ADAMS),
    "eps": Situation(option(eps=0.1), of=COUNTING),
    "lr_decay": Situation(option(lr_decay=0.5), of=("AdaGrad",)),
    "alpha": Situation(option(alpha=0.5), of=("RMSProp",)),
    "decoupled_weight_decay on": Situation(
        option(decoupled_weight_decay=True, weight_decay=0.1), of=("Adam",), options={}
    ),
    "momentum on": Situation(option(momentum=0.5), of=("SGD",), options={}),
    "momentum off": Situation(option(momentum=0), of=("Momentum", "RMSProp")),
    "momentum negative": Situation(
        option(momentum=-0.5), of=("SGD", "Momentum", "RMSProp"), options={}
    ),
    "nesterov on": Situation(option(nesterov=True), of=("Momentum",), options={}),
    "dampening on": Situation(option(dampening=0.5), of=("Momentum",), options={}),
    "centered off": Situation(option(centered=False), of=("RMSProp",)),
    "amsgrad off": Situation(option(amsgrad=False), of=ADAMS),
    "amsgrad on": refused(option(amsgrad=True), KeyError, "max_exp_avg_sq", of=ADAMS, options={}),
    "amsgrad on before the first step": Situation(
        option(amsgrad=True), at=(0,), of=ADAMS, options={}
    ),
    "momentum on in RMSProp": refused(
        option(momentum=0.5), KeyError, "momentum_buffer", of=("RMSProp",), options={}
    ),
    "centered on": refused(
        option(centered=True), KeyError, "grad_avg", of=("RMSProp",), options={}
    ),
    "one group fused": Situation(
        _fused_in_part, models=(groups,), of=LINEAR, engines=("loop", "foreach", "default")
    ),
    # What surrounds a step
    "a copy goes on": Situation(copy.deepcopy),
    "a copy through pickle goes on": Situation(lambda o: pickle.loads(pickle.dumps(o))),
    "own checkpoint loaded": Situation(_load),
    "hook before the step": Situation(lambda o: o.register_step_pre_hook(_double_gradients)),
    "hook after the step": Situation(lambda o: o.register_step_post_hook(_halve)),
    "closure": Situation(step=_closure),
    "scaler that finds infinity": Situation(step=_scaled),
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
