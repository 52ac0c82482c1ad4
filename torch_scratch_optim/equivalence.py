"""Compare two optimizers step by step and find the first bit in which they differ::

    result = compare(torch.optim.Adam, MyAdam)
    print(result)
    assert result.equal, result  # in a test

It compares any two :class:`torch.optim.Optimizer` whose step needs no closure, on random gradients
or on your own model and gradients.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Takes a list of parameters and returns an optimizer of them; an optimizer's class does.
Make = Callable[[list[Any]], torch.optim.Optimizer]
#: Leaves the gradients of step 1, 2, … in a model's parameters.
Gradients = Callable[[Any, int], Any]
Place = tuple[str, str | None]  # a parameter's name and, for its state, a key

#: The distance of NaN from a number, of what cannot be compared, and of all that is as far apart.
FAR = 2**63 - 1


@dataclass(frozen=True)
class Mismatch:
    """A tensor in which two optimizers differ, and the element with the largest distance in ulps.

    Attributes:
        step: 1 for the first.
        parameter: its name in the model.
        state: the key of its state, or None for the parameter itself.
        a: the first optimizer's value, or a description of the tensor if the two have different
            dtypes or shapes or one is missing.
        b: the second optimizer's value.
        index: the index of the element, or None if the tensors cannot be compared.
        ulps: the distance of the two values, see :func:`ulp_distance`.
        max_difference: the largest absolute difference of two elements of the tensor.
    """

    step: int
    parameter: str
    state: str | None
    a: Any
    b: Any
    index: tuple[int, ...] | None = None
    ulps: int = FAR
    max_difference: float = float("nan")

    def __str__(self) -> str:
        what = f"{self.state} of {self.parameter}" if self.state else f"parameter {self.parameter}"
        if self.index is not None:
            what += f" at {list(self.index)}, {self.ulps:,} ulp ({self.max_difference:.2g})"
        return f"step {self.step}, {what}: {self.a} against {self.b}"


@dataclass(frozen=True)
class ComparisonResult:
    """The result of :func:`compare`.

    Attributes:
        steps: how many steps were taken.
        compared: how many tensors were compared: each parameter and each of its states, after each
            step.
        mismatches: the tensors that differ, in order of appearance.
    """

    steps: int
    compared: int
    mismatches: tuple[Mismatch, ...]

    @property
    def equal(self) -> bool:
        """Whether everything that was compared had the same bits after every step."""
        return not self.mismatches

    @property
    def max_ulps(self) -> int:
        """The largest distance in ulps of all that was compared."""
        return max((mismatch.ulps for mismatch in self.mismatches), default=0)

    def __str__(self) -> str:
        scope = f"{self.compared:,} tensors in {self.steps:,} steps"
        if self.equal:
            return f"equal, bit for bit: {scope}"
        total = f"{len(self.mismatches):,} of {scope} differ, by up to {self.max_ulps:,} ulp"
        return f"different from {self.mismatches[0]}\n{total}"


def random_model(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> nn.ParameterDict:
    """Parameters of varied shapes, normally distributed; enough of them that ``foreach`` gathers.

    Args:
        dtype: floating-point or complex. Default float32.
        seed: of the values; torch's own generators are not used. Default 0.
    """
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, Any] = {"matrix": (7, 5), "scalar": (), "long": (1000,)}
    shapes |= {f"vector{size}": (size,) for size in range(1, 16)} | {"waits": (3,)}
    return nn.ParameterDict(
        [(name, torch.randn(s, generator=random, dtype=dtype)) for name, s in shapes.items()]
    )


def random_gradients(model: nn.Module, step: int, *, seed: int = 0) -> None:
    """Normally distributed gradients, in each parameter scaled from 10 at its first element evenly
    down to 10⁻⁶ at its last. At every third step the last parameter has none.

    Args:
        model: any; its gradients are replaced.
        step: together with `seed` decides the values; torch's own generators are not used.
        seed: see there. Default 0.
    """
    random = torch.Generator().manual_seed(hash((seed, step)))
    for p in model.parameters():
        sizes = torch.logspace(1, -6, p.numel(), dtype=torch.float64).view(p.shape)
        p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype).mul_(sizes).to(p.device)
    if step % 3 == 0:
        p.grad = None


def compare(
    make_a: Make,
    make_b: Make,
    model: nn.Module | None = None,
    gradients: Gradients = random_gradients,
    *,
    steps: int = 200,
    state: bool = True,
) -> ComparisonResult:
    """Run two optimizers in lockstep on one problem and compare them bit by bit.

    Each works on a copy of the model. After each step the tensors and numbers in its
    ``optimizer.state[p]`` are compared with the other's, then p itself. Both draw the same random
    numbers from torch's generators, which are put back at the end.

    Args:
        make_a: takes a list of parameters and returns the first optimizer of them; for instance
            ``torch.optim.Adam``, or ``lambda params: torch.optim.Adam(params, lr=0.1)``.
        make_b: the same for the second.
        model: whose parameters they work on, of any shapes; it stays as it is. Bare tensors go into
            an ``nn.ParameterList``. Default ``random_model()``.
        gradients: ``gradients(model, step)`` leaves in the model's parameters the gradients of step
            1, 2, …, for instance by computing a loss and running backward. Default
            :func:`random_gradients`.
        steps: how many steps they take, at least 1. Default 200.
        state: whether to compare the state as well. Use False if the state of the two has different
            keys. Default True.

    Returns:
        The mismatches, if there are any. All NaNs are equal. −0.0 and 0.0 differ by one ulp.

    Raises:
        TypeError: `make_a` or `make_b` does not return an optimizer.
        ValueError: `steps` is not a whole number from 1 up, or an optimizer holds none of the
            parameters that it was given.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number from 1 up, not {steps!r}")
    model = random_model() if model is None else model
    a, b = (_run(make, model, gradients) for make in (make_a, make_b))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    compared, mismatches = 0, list[Mismatch]()
    with torch.random.fork_rng(devices):
        for step in range(1, steps + 1):
            with torch.random.fork_rng(devices):
                mine = next(a)
            others = next(b)
            places = [place for place in mine | others if state or place[1] is None]
            places.sort(key=(mine.keys() & others).__contains__)  # what is missing comes first
            found = (_divergence(step, key, mine.get(key), others.get(key)) for key in places)
            mismatches += filter(None, found)
            compared += len(places)
    return ComparisonResult(steps, compared, tuple(mismatches))


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """The distance of `a` and `b` in ulps: in steps from one representable number to the next.

    −0.0 and 0.0 are 1 apart, as are infinity and the largest finite number. NaN is 0 from NaN and
    ``FAR`` = 2⁶³ − 1 from a number. Distances above ``FAR``, possible in float64, count as ``FAR``.

    Args:
        a: a tensor of a floating-point or integer dtype, of any shape.
        b: a tensor of the same shape. If the dtypes differ, the wider one counts.

    Returns:
        int64, of that shape.

    Raises:
        RuntimeError: the shapes differ; the message is torch's.
    """
    both = torch.stack([a.detach(), b.detach()])
    order = both
    if both.is_floating_point():  # whose bits count backwards below zero
        order = _bits(both)
        order = torch.where(order < 0, order ^ torch.iinfo(order.dtype).max, order)
    distance = order.long().amax(0) - order.long().amin(0)  # beyond FAR it has wrapped round
    nan = both.isnan()
    distance[(distance < 0) | nan.any(0)] = FAR
    distance[nan.all(0)] = 0
    return distance


def _bits(t: Tensor) -> Tensor:
    return t.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize])


def _kind(t: Tensor | None) -> str:
    return "nothing" if t is None else f"{t.dtype} {list(t.shape)}"


def _run(make: Make, model: nn.Module, gradients: Gradients) -> Iterator[dict[Place, Tensor]]:
    """Step after step, all that is to be compared; states before the parameter that they move."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    optimizer = make(list(parameters.values()))
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"expected {make} to return a torch.optim.Optimizer, not {optimizer!r}")
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(parameters.values()):
        raise ValueError(f"{type(optimizer).__name__} holds none of the parameters it was given")
    for step in itertools.count(1):
        gradients(model, step)
        optimizer.step()
        yield {
            (name, key): _real(value)
            for name, p in parameters.items()
            for key, value in [*optimizer.state.get(p, {}).items(), (None, p)]
            if isinstance(value, (Tensor, float, int))
        }


def _real(value: Tensor | float) -> Tensor:
    t = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    t = t.detach().cpu()  # a state may be on another device than its parameter
    return torch.view_as_real(t) if t.is_complex() else t


def _divergence(step: int, place: Place, a: Tensor | None, b: Tensor | None) -> Mismatch | None:
    if a is None or b is None or _kind(a) != _kind(b):
        return Mismatch(step, *place, _kind(a), _kind(b))
    if torch.equal(_bits(a), _bits(b)) or not (ulps := ulp_distance(a, b)).any():
        return None
    at = tuple((ulps == ulps.max()).nonzero()[0].tolist())
    most = float((a.double() - b.double())[ulps > 0].abs().max())
    return Mismatch(step, *place, a[at].item(), b[at].item(), at, int(ulps[at]), most)
