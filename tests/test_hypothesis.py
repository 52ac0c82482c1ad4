"""Runs that nobody thought of: random models, options and interruptions, each equal to torch's."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torch_scratch_optim import ScratchOptimizer, engines

from .cases import (
    BLOCK,
    DEVICE,
    ENGINES,
    LINEAR,
    LOOPS,
    PAIRS,
    TABLE,
    Case,
    leaves,
    small_blocks,
    torchs_adagrad_makes_state_late,
)
from .ieee import assert_step
from .situations.changes import assert_same, one_thread, roots_of

pytestmark = pytest.mark.slow

# The same examples at every run: what is green stays green. Their number is what the time allows.
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

WIDE = [torch.float32, torch.float64]
HALF = [torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]

Shapes = st.SearchStrategy[tuple[int, ...]]
TINY: Shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)
# Both sides of what is small, and of what another thread takes.
EDGES = st.sampled_from([(n + i,) for n in (engines.SMALL, engines.GRAIN) for i in (0, 1)])
SMALL: Shapes = TINY | EDGES | st.sampled_from([(63, 65), (2, 3, 31, 33)])
# Tensors that are cut into blocks, and one that just is not.
LARGE: Shapes = st.sampled_from([(BLOCK,), (BLOCK + 1,), (259, 257), (2, 2, 129, 131)])
# Both sides of how many are left to the loop; and so many that a table of addresses grows.
COUNTS = st.sampled_from([1, 2, engines.FEW, engines.FEW + 1, 127, 128, 129, 300])
# So many elements that a hundred such tensors are more than one batch.
BATCHED: Shapes = st.just((engines.GRAIN // 100 + 1,))
LAYOUTS = ["dense", "transposed", "every other", "offset", "channels last", "negative bit"]


@dataclass(frozen=True)
class Leaf:
    """A parameter to be made, equal at every call, and how its gradients lie in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    gradients: str
    seed: int

    def make(self) -> Tensor:
        return laid_out(self.normal(self.seed), self.layout).requires_grad_()

    def gradient(self, step: int, scale: float) -> Tensor:
        # No negative zero: where β₁ is 0, torch's loop makes of it either zero, by its position in
        # the tensor.
        return laid_out(self.normal(self.seed + 1000 * step) * scale + 0.0, self.gradients)

    def normal(self, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        exact = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(self.shape, generator=random, dtype=exact).to(DEVICE, self.dtype)


def laid_out(dense: Tensor, layout: str) -> Tensor:
    """The same numbers, differently in memory."""
    if layout == "transposed":
        return dense.mT.contiguous().mT if dense.ndim > 1 else dense
    if layout == "channels last" and dense.ndim == 4:
        return dense.contiguous(memory_format=torch.channels_last)
    if layout == "every other" and dense.ndim:
        return dense.repeat_interleave(2, -1)[..., ::2]
    if layout == "negative bit":
        return torch._neg_view(-dense)
    if layout == "offset":
        return torch.cat([dense.new_zeros(3), dense.flatten()])[3:].view(dense.shape)
    return dense


Model = list[list[Leaf]]


@st.composite
def models(
    draw: st.DrawFn, dtypes: list[torch.dtype], shapes: Shapes, most: int = 4, copies: Any = COUNTS
) -> Model:
    """Up to three groups of parameters, of which some are many of one shape."""
    # A conjugated complex number has no negative bit of its own.
    allowed = [x for x in LAYOUTS if x != "negative bit" or torch.float32 in dtypes]
    layouts, seeds = st.sampled_from(allowed), st.integers(0, 999)
    leaf = st.builds(Leaf, shapes, st.sampled_from(dtypes), layouts, layouts, seeds)
    drawn: list[Leaf] = draw(st.lists(leaf, min_size=1, max_size=most))
    # Many of one shape: those that are gathered would be copied to each other's places.
    if copies is not None:
        many = replace(drawn[-1], shape=draw(TINY | BATCHED))
        drawn += [replace(many, seed=1000 + i) for i in range(draw(copies))]
    cuts = sorted(draw(st.sets(st.integers(1, len(drawn)), max_size=2)) | {0, len(drawn)})
    return [drawn[a:b] for a, b in pairwise(cuts)]


rate = st.sampled_from([0.0, 1e-3, 0.1]) | st.floats(1e-6, 1.0)
share = st.sampled_from([0.0, 0.9]) | st.floats(0.0, 0.999)
flag = st.booleans()
EVERYWHERE = {"lr": rate, "weight_decay": rate, "maximize": flag}
MOMENTUM = {"momentum": share, "dampening": share, "nesterov": flag}
ADAM = {"betas": st.tuples(share, share), "eps": rate, "amsgrad": flag}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "SGD": MOMENTUM,
    "Momentum": MOMENTUM,
    "AdaGrad": {"lr_decay": rate, "initial_accumulator_value": rate, "eps": rate},
    "RMSProp": {"alpha": share, "eps": rate, "momentum": share, "centered": flag},
    "Adam": ADAM | {"decoupled_weight_decay": flag},
    "AdamW": ADAM,
}
Options = st.SearchStrategy[dict[str, Any]]


def allowed(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("nesterov"):
        options["dampening"] = 0.0
        options["momentum"] = options.get("momentum") or 0.9
    return options


def any_options(name: str) -> Options:
    return st.fixed_dictionaries({}, optional=EVERYWHERE | OPTIONS[name]).map(allowed)


def options_of_the_table(name: str) -> Options:
    """Any numbers for the options of a case: of flags there are few, each to be compiled."""
    known = EVERYWHERE | OPTIONS[name]

    def numbers(case: dict[str, Any]) -> Options:
        drawn = {
            option: st.just(value) if isinstance(value, bool) else known[option].filter(bool)
            for option, value in case.items()
        }
        return st.fixed_dictionaries({"lr": rate} | drawn).map(allowed)

    return st.sampled_from(TABLE[name]).flatmap(numbers)


EVENTS = [
    "a group is added",
    "libraries change hands",
    "a copy goes on",
    "the rate changes",
    "step counts change",
    "nothing",
]


def events_of(optimizer: str) -> list[str]:
    can_add = optimizer != "AdaGrad" or torchs_adagrad_makes_state_late()
    return EVENTS if can_add else EVENTS[1:]


class Twins:
    """Ours and torch's, side by side, through whatever happens to a run."""

    def __init__(self, case: Case, engine: str, model: Model, **torchs_engine: bool) -> None:
        self.case, self.engine = case, engine
        self.options = ENGINES[engine], {"foreach": False} | torchs_engine
        self.ours, self.theirs = (
            make([{"params": [leaf.make() for leaf in group]} for group in model], **options)
            for make, options in zip((case.ours, case.torchs), self.options, strict=True)
        )

    def happen(self, event: str, more: Model, number: float) -> None:
        both: list[Any] = [self.ours, self.theirs]
        for twin in both:
            if event == "a group is added":
                for group in more:
                    params = [leaf.make() for leaf in group]
                    twin.add_param_group({"params": params, "lr": number})
            elif event == "the rate changes":
                twin.param_groups[0]["lr"] = number
            elif event == "step counts change":
                for i, state in enumerate(twin.state.values()):
                    if i % 3 and "step" in state:
                        state["step"].add_(i)
        if event == "a copy goes on":
            self.ours, self.theirs = map(copy.deepcopy, both)
        elif event == "libraries change hands":
            states = [copy.deepcopy(twin.state_dict()) for twin in both]
            makers = self.case.ours, self.case.torchs
            self.ours, self.theirs = map(self.restarted, makers, self.options, states[::-1])

    def restarted(self, make: Any, engine: dict[str, Any], state: dict[str, Any]) -> Any:
        """A new optimizer of the same parameters; what it is to do, a checkpoint says."""
        kept = [[p.detach().clone() for p in g["params"]] for g in self.theirs.param_groups]
        groups = [{"params": [p.requires_grad_() for p in params]} for params in kept]
        made = make(groups, lr=123.0, **engine)
        made.load_state_dict(state)
        for group in made.param_groups:
            group.update({"foreach": None, "fused": None} | engine)
        return made

    def step(self, gradients: list[Tensor | None]) -> None:
        for twin in (self.ours, self.theirs):
            for p, gradient in zip(leaves(twin), gradients, strict=True):
                p.grad = gradient
            twin.step()


def gradients_of(
    model: Model, data: st.DataObject, step: int, scale: float = 1.0
) -> list[Tensor | None]:
    absent = data.draw(st.sets(st.integers(0, 6), max_size=3), "without gradient")
    made = enumerate(leaf for group in model for leaf in group)
    return [None if i % 7 in absent else leaf.gradient(step, scale) for i, leaf in made]


def assert_a_run_equals_torchs(
    case: Case,
    names: Collection[str],
    data: st.DataObject,
    drawn: st.SearchStrategy[Model],
    longest: int = 3,
    **torchs_engine: bool,
) -> None:
    model = data.draw(drawn, "model")
    runs = [Twins(case, engine, model, **torchs_engine) for engine in names]
    for step in range(data.draw(st.integers(1, longest), "steps")):
        event = data.draw(st.sampled_from(events_of(case.optimizer)), "event")
        more = data.draw(drawn, "more") if event == "a group is added" and not step % 2 else []
        number = data.draw(rate, "rate") if "rate" in event or more else 0.0
        scale = data.draw(st.sampled_from([1.0, 1e-4, 1e3, 0.0]), "scale")
        model = model + more
        gradients = gradients_of(model, data, step, scale)
        for run in runs:
            with roots_of(run.engine, case.optimizer):
                run.happen(event, more, number)
                run.step(gradients)
            assert_same(run.ours, run.theirs, f"step {step}, {event}, {run.engine}")


by_name = pytest.mark.parametrize("name", PAIRS)
# On a GPU the engine fused counts on the device.
EXACT = ENGINES if DEVICE.type == "cpu" else LOOPS


@FIXED
@given(data=st.data())
@by_name
def test_any_run_equals_torchs_by_every_engine(name: str, data: st.DataObject) -> None:
    case = Case(name, data.draw(options_of_the_table(name), "options"))
    with one_thread():
        assert_a_run_equals_torchs(case, EXACT, data, models(WIDE, SMALL))


@small_blocks()
@settings(FIXED, max_examples=3)
@given(data=st.data())
@by_name
def test_any_run_on_large_tensors_equals_torchs_by_every_engine(
    name: str, data: st.DataObject
) -> None:
    case = Case(name, data.draw(options_of_the_table(name), "options"))
    drawn = models(WIDE[:1], LARGE, most=1, copies=None)
    assert_a_run_equals_torchs(case, EXACT, data, drawn, longest=2)


@FIXED
@given(data=st.data())
@by_name
def test_any_options_and_half_precision_equal_torchs(name: str, data: st.DataObject) -> None:
    case = Case(name, data.draw(any_options(name), "options"))
    with one_thread():
        assert_a_run_equals_torchs(case, LOOPS, data, models(WIDE + HALF, SMALL))


@pytest.mark.cpu  # torch's foreach on a GPU is not its loop
@settings(FIXED, max_examples=5)
@given(data=st.data())
@by_name
def test_any_run_on_complex_numbers_equals_torchs(name: str, data: st.DataObject) -> None:
    # On complex numbers torch's own loop and foreach differ: in weight decay, and in the sign of a
    # zero that maximize negates. Ours are its foreach.
    case = Case(name, data.draw(any_options(name), "options"))
    assert_a_run_equals_torchs(
        case, LOOPS, data, models(COMPLEX, SMALL), foreach=name not in LINEAR
    )


@pytest.mark.cpu  # IEEE arithmetic
@settings(FIXED, max_examples=5)
@given(data=st.data())
@by_name
def test_fused_half_precision_and_complex_numbers_have_the_bits_of_ieee_arithmetic(
    name: str, data: st.DataObject
) -> None:
    # Its kernels round half precision once and multiply real numbers, which torch's loop does not.
    model = data.draw(models([*HALF, COMPLEX[0]], SMALL), "model")
    groups = [{"params": [leaf.make() for leaf in group]} for group in model]
    ours: ScratchOptimizer = Case(name, TABLE[name][-1]).ours(groups, fused=True)
    for step in range(3):
        for p, gradient in zip(leaves(ours), gradients_of(model, data, step), strict=True):
            p.grad = gradient
        assert_step(ours)
