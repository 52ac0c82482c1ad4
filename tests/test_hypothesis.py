"""Runs that nobody thought of: random models, options and interruptions, each equal to torch's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import engines

from .cases import PAIRS, Case, assert_equal_state, leaves

# The same examples at every run: what is green stays green. Their number is what the time allows.
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

REAL = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]
# A few numbers; more than are gathered; more than one thread takes.
SMALL = st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.sampled_from([(4097,), (40_001,)])
# More than one block, so that they are cut.
LARGE = st.sampled_from([(270_001,), (541, 500), (2, 2, 300, 301)])
layouts = st.sampled_from(["dense", "transposed", "every other", "offset", "channels last"])


@pytest.fixture(autouse=True, scope="module")
def however_few_are_gathered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "FEW", 0)
        yield


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
        return laid_out(self.normal(self.seed + 1000 * step) * scale, self.gradients)

    def normal(self, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        exact = torch.complex128 if self.dtype.is_complex else torch.float64
        return torch.randn(self.shape, generator=random, dtype=exact).to(self.dtype)


def laid_out(dense: Tensor, layout: str) -> Tensor:
    """The same numbers, differently in memory."""
    if layout == "transposed":
        return dense.mT.contiguous().mT if dense.ndim > 1 else dense
    if layout == "channels last" and dense.ndim == 4:
        return dense.contiguous(memory_format=torch.channels_last)
    if layout == "every other" and dense.ndim:
        return dense.repeat_interleave(2, -1)[..., ::2]
    if layout == "offset":
        return torch.cat([dense.new_zeros(3), dense.flatten()])[3:].view(dense.shape)
    return dense


def model(
    dtypes: list[torch.dtype], shapes: st.SearchStrategy[tuple[int, ...]], most: int = 5
) -> st.SearchStrategy[list[Leaf]]:
    seeds = st.integers(0, 999)
    leaf = st.builds(Leaf, shapes, st.sampled_from(dtypes), layouts, layouts, seeds)
    return st.lists(leaf, min_size=1, max_size=most)


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


def some_options(name: str) -> st.SearchStrategy[dict[str, Any]]:
    def allowed(options: dict[str, Any]) -> dict[str, Any]:
        if options.get("nesterov"):
            options["dampening"] = 0.0
            options["momentum"] = options.get("momentum") or 0.9
        return options

    return st.fixed_dictionaries({}, optional=EVERYWHERE | OPTIONS[name]).map(allowed)


EVENTS = [
    "a group is added",
    "libraries change hands",
    "a copy goes on",
    "the rate changes",
    "nothing",
]


class Twins:
    """Ours and torch's, side by side, through whatever happens to a run."""

    def __init__(
        self, case: Case, engine: bool | None, leaves_: list[Leaf], torchs_engine: bool
    ) -> None:
        self.case, self.leaves = case, list(leaves_)
        self.engine, self.torchs_engine = engine, torchs_engine
        self.ours: Optimizer = case.ours([leaf.make() for leaf in leaves_], foreach=engine)
        self.theirs = case.torchs([leaf.make() for leaf in leaves_], foreach=torchs_engine)

    def happen(self, event: str, more: list[Leaf], number: float) -> None:
        if event == "a group is added":
            for twin in (self.ours, self.theirs):
                twin.add_param_group({"params": [leaf.make() for leaf in more], "lr": number})
            self.leaves += more
        elif event == "libraries change hands":
            ours = self.restart(self.case.ours, self.engine)
            theirs = self.restart(self.case.torchs, self.torchs_engine)
            ours.load_state_dict(copy.deepcopy(self.theirs.state_dict()))
            theirs.load_state_dict(copy.deepcopy(self.ours.state_dict()))
            for group in ours.param_groups:
                group["foreach"] = self.engine
            for group in theirs.param_groups:
                group["foreach"] = self.torchs_engine
            self.ours, self.theirs = ours, theirs
        elif event == "a copy goes on":
            self.ours, self.theirs = copy.deepcopy(self.ours), copy.deepcopy(self.theirs)
        elif event == "the rate changes":
            for twin in (self.ours, self.theirs):
                twin.param_groups[0]["lr"] = number

    def restart(self, make: Any, engine: bool | None) -> Any:
        """A new optimizer of the same parameters; what it is to do, a checkpoint must say."""
        kept = [[p.detach().clone() for p in g["params"]] for g in self.theirs.param_groups]
        first, *rest = ([p.requires_grad_() for p in params] for params in kept)
        made = make(first, lr=123.0, foreach=engine)  # groups that are added will have it, too
        for params in rest:
            made.add_param_group({"params": params})
        return made

    def step(self, number: int, absent: set[int], scale: float) -> None:
        for twin in (self.ours, self.theirs):
            for i, (leaf, p) in enumerate(zip(self.leaves, leaves(twin), strict=True)):
                p.grad = None if i in absent else leaf.gradient(number, scale)
            twin.step()


def assert_a_run_equals_torchs(
    name: str,
    data: st.DataObject,
    models: st.SearchStrategy[list[Leaf]],
    longest: int = 6,
    is_complex: bool = False,
) -> None:
    options = data.draw(some_options(name), "options")
    engine = data.draw(st.sampled_from([False, True, None]), "foreach")
    # On complex numbers torch's own loop and foreach differ: in weight decay, and in the sign of a
    # zero that maximize negates. Ours are its foreach.
    torchs_engine = is_complex and name not in ("SGD", "Momentum")
    twins = Twins(Case(name, options), engine, data.draw(models, "model"), torchs_engine)
    for step in range(data.draw(st.integers(1, longest), "steps")):
        event = data.draw(st.sampled_from(EVENTS), "event")
        more = data.draw(models, "more") if event == "a group is added" else []
        number = data.draw(rate, "rate") if "rate" in event or more else 0.0
        twins.happen(event, more, number)
        absent = data.draw(st.sets(st.integers(0, len(twins.leaves) - 1)), "without gradient")
        scale = data.draw(st.sampled_from([1.0, 1e-4, 1e3, 0.0]), "scale")
        twins.step(step, absent, scale)
        assert_equal_state(twins.ours, twins.theirs, f"step {step}, {event}")


@FIXED
@given(data=st.data())
@pytest.mark.parametrize("name", PAIRS)
def test_any_run_equals_torchs(name: str, data: st.DataObject) -> None:
    assert_a_run_equals_torchs(name, data, model(REAL, SMALL))


@settings(FIXED, max_examples=15)
@given(data=st.data())
@pytest.mark.parametrize("name", PAIRS)
def test_any_run_on_large_tensors_equals_torchs(name: str, data: st.DataObject) -> None:
    assert_a_run_equals_torchs(name, data, model(REAL, LARGE, most=1), longest=3)


@settings(FIXED, max_examples=15)
@given(data=st.data())
@pytest.mark.parametrize("name", PAIRS)
def test_any_run_on_complex_numbers_equals_torchs(name: str, data: st.DataObject) -> None:
    assert_a_run_equals_torchs(name, data, model(COMPLEX, SMALL), is_complex=True)
