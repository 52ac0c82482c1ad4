"""What is stepped, and what is done to it before a step."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torch_scratch_optim import engines

from .. import ieee
from ..cases import BLOCK, DEVICE, LINEAR, leaves, same_bits

# Whatever moves elements of one memory one after the other, as torch's loop does.
IN_ORDER = ("loop", "fused")

Groups = list[dict[str, Any]]
Mend = Callable[[], object]
# It returns how to mend what it did, or an optimizer that takes the place of the old one.
Change = Callable[[Optimizer], object]
Edit = Callable[[Tensor], Any]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=random, dtype=wide).to(DEVICE, dtype)


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
    rows = BLOCK // 1024
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


def append(optimizer: Optimizer) -> None:
    new = normal(3, 2, seed=50).requires_grad_(leaves(optimizer)[0].requires_grad)
    new.grad = normal(3, 2, seed=51)
    optimizer.param_groups[-1]["params"].append(new)


def add_group(optimizer: Optimizer) -> None:
    new = normal(3, 2, seed=52).requires_grad_()
    new.grad = normal(3, 2, seed=53)
    optimizer.add_param_group({"params": [new], "lr": 0.03, "weight_decay": 0.2})


def list_twice(optimizer: Optimizer) -> None:
    group = optimizer.param_groups[-1]["params"]
    if not any(p is group[-1] for p in group[:-1]):
        group.append(struck(optimizer)[0])


def list_in_two_groups(optimizer: Optimizer) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    if not any(p is q for p in first for q in second):
        first.append(struck(optimizer)[0])


def remove(optimizer: Optimizer) -> None:
    group, p = optimizer.param_groups[-1]["params"], struck(optimizer)[0]
    del group[next(i for i, q in enumerate(group) if q is p)]


def freeze(optimizer: Optimizer, alone: bool = True) -> None:
    p = struck(optimizer)[0].requires_grad_(False)
    if not alone:
        p.grad = None


def own_memory(p: Tensor, q: Tensor) -> None:
    p.grad = p.detach()


def others_memory(p: Tensor, q: Tensor) -> None:
    q.grad = p.detach()


def each_others_memory(p: Tensor, q: Tensor) -> None:
    p.grad, q.grad = q.detach(), p.detach()


def one_gradient(p: Tensor, q: Tensor) -> None:
    q.grad = p.grad


def one_memory(p: Tensor, q: Tensor) -> None:
    q.data = p.data


def one_strided_memory(p: Tensor, q: Tensor) -> None:
    p.data = q.data = strided(p.data)


def exchange(p: Tensor, q: Tensor) -> None:
    p.data, q.data = q.data, p.data


def replace(optimizer: Optimizer) -> None:
    p = struck(optimizer)[0]
    p.data, p.grad = normal(3, 5, seed=60), None
    p.grad = normal(3, 5, seed=61)
    optimizer.state.pop(p, None)


def reset(optimizer: Optimizer) -> None:
    optimizer.__setstate__({"state": defaultdict(dict)})


def load(optimizer: Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def fused_in_part(optimizer: Optimizer) -> None:
    if type(optimizer).__module__.startswith("torch_scratch_optim"):
        optimizer.param_groups[0].update(fused=True, foreach=None)


def double_gradients(optimizer: Optimizer, *_: Any) -> None:
    for p in leaves(optimizer):
        if p.grad is not None:
            p.grad = p.grad * 2


def halve(optimizer: Optimizer, *_: Any) -> None:
    with torch.no_grad():
        for p in leaves(optimizer):
            p.mul_(0.5)


def scaled(optimizer: Optimizer) -> None:
    """A step through a scaler, gradients infinite at the third."""
    if not hasattr(optimizer, "scaler"):
        optimizer.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)  # type: ignore[attr-defined]  # ours for the test
        optimizer.seen = 0  # type: ignore[attr-defined]  # ours for the test
    scaler: Any = optimizer.scaler  # type: ignore[attr-defined]  # ours for the test
    scale = scaler.scale(torch.ones((), device=DEVICE))
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


def closure(optimizer: Optimizer) -> None:
    def closure() -> float:
        assert torch.is_grad_enabled()
        double_gradients(optimizer)
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


def t(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def negative(x: Tensor) -> Tensor:
    return torch._neg_view(-x)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)
