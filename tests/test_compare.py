"""equivalence.compare: it finds what is different, where it is, and nothing else."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_scratch_optim import ScratchAdam, engines
from torch_scratch_optim.equivalence import (
    FAR,
    compare,
    random_gradients,
    random_model,
    ulp_distance,
)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class Planted(torch.optim.SGD):
    """SGD with momentum that, at one step, changes one element of a parameter or of its state."""

    def __init__(self, params: Any, change: Any, state: str | None = None, step: int = 7) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)
        self.change, self.key, self.at, self.steps = change, state, step, 0

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.steps += 1
        if self.steps == self.at:
            p = self.param_groups[0]["params"][0]
            with torch.no_grad():
                self.change(self.state[p][self.key] if self.key else p)
        return loss


def sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def next_up(t: Tensor, ulps: int = 1) -> None:
    """Move one element away from zero by a few ulps."""
    t.view(torch.int32)[2, 3] += ulps


def test_equal_optimizers_get_a_certificate() -> None:
    found = compare(ScratchAdam, torch.optim.Adam, steps=10)
    assert found.equal
    assert found.mismatches == ()
    assert found.max_ulps == 0
    # The parameter that waits has no gradient at every third step, but keeps its three states.
    assert found.compared == 10 * 19 * 4
    assert str(found) == "equal, bit for bit: 760 tensors in 10 steps"


@pytest.mark.parametrize("state", [None, "momentum_buffer"])
@pytest.mark.parametrize("ulps", [1, 5])
def test_a_planted_difference_is_found_where_it_is(state: str | None, ulps: int) -> None:
    found = compare(sgd, lambda p: Planted(p, lambda t: next_up(t, ulps), state), steps=9)
    first = found.mismatches[0]
    assert (first.step, first.parameter, first.state, first.index) == (7, "matrix", state, (2, 3))
    assert first.ulps == ulps
    assert first.max_difference == abs(first.a - first.b) > 0
    assert not found.equal
    assert "step 7" in str(found)
    assert "at [2, 3]" in str(found)


def test_without_state_only_parameters_are_compared() -> None:
    def planted(params: Any) -> Planted:
        return Planted(params, next_up, "momentum_buffer")

    assert not compare(sgd, planted, steps=7).equal
    assert compare(sgd, planted, steps=7, state=False).equal
    assert compare(sgd, planted, steps=7, state=False).compared == 7 * 19


def test_every_mismatch_is_counted_and_the_largest_is_told() -> None:
    found = compare(sgd, lambda p: Planted(p, lambda t: t.add_(1.0)), steps=8, state=False)
    assert [d.step for d in found.mismatches] == [7, 8]
    assert found.max_ulps == max(d.ulps for d in found.mismatches) > 1e6


def test_state_that_one_alone_keeps_is_a_divergence() -> None:
    first = compare(torch.optim.SGD, sgd, steps=3).mismatches[0]
    assert (first.state, first.a, first.index) == ("momentum_buffer", "nothing", None)
    assert first.b == "torch.float32 [7, 5]"
    assert first.ulps == FAR
    assert "nothing against torch.float32 [7, 5]" in str(first)


def test_state_of_another_dtype_is_a_divergence() -> None:
    class Whole(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for state in self.state.values():
                state["step"] = int(state["step"])
            return loss

    def whole(params: Any) -> Whole:
        optimizer = Whole(params)
        return optimizer

    first = compare(torch.optim.Adam, whole, steps=1).mismatches[0]
    assert (first.state, first.a, first.b) == ("step", "torch.float32 []", "torch.float64 []")


def test_nan_equals_nan_of_any_payload_but_no_number() -> None:
    def set_to(bits: int) -> Any:
        return lambda p: Planted(p, lambda t: t.view(torch.int32)[2, 3].fill_(bits), step=2)

    quiet, other = 0x7FC00000, 0x7FC00001
    assert compare(set_to(quiet), set_to(other), steps=3).equal
    found = compare(set_to(quiet), sgd, steps=3)
    assert found.max_ulps == FAR
    assert math.isnan(found.mismatches[0].a)


def test_the_sign_of_zero_counts() -> None:
    def set_to(zero: float) -> Any:
        return lambda p: Planted(p, lambda t: t[2, 3].fill_(zero), step=1)

    found = compare(set_to(0.0), set_to(-0.0), steps=1)
    assert found.max_ulps == 1
    assert len(found.mismatches) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_pairs_of_real_ones(dtype: torch.dtype) -> None:
    assert compare(ScratchAdam, torch.optim.Adam, random_model(dtype), steps=3).equal
    planted = functools.partial(Planted, change=lambda t: t[2, 3].add_(1j))
    found = compare(sgd, planted, random_model(dtype), steps=7)
    assert found.mismatches[0].index == (2, 3, 1)


def test_parameters_without_gradients_stand_still() -> None:
    class Eager(torch.optim.SGD):
        """Takes a missing gradient for zeros, so that momentum goes on."""

        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            return super().step(closure)

    first = compare(sgd, lambda p: Eager(p, lr=0.1, momentum=0.9)).mismatches[0]
    assert (first.step, first.parameter) == (3, "waits")


def test_a_model_in_training() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 1))
    before = [p.clone() for p in model.parameters()]

    def backward(net: nn.Module, step: int) -> None:
        net.zero_grad()
        net(torch.randn(16, 3)).square().mean().backward()

    def larger(params: Any) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=1.1e-3)

    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    # Both see the same batches and the same dropout, drawn from the caller's generator...
    assert compare(ScratchAdam, torch.optim.Adam, model, backward, steps=20).equal
    assert compare(larger, torch.optim.Adam, model, backward, steps=2).mismatches[0].parameter == (
        "0.weight"
    )
    # ...which is then as it was, like the model.
    assert torch.equal(torch.rand(3), drawn)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_batches_differ_from_step_to_step() -> None:
    seen: list[float] = []

    def backward(model: nn.Module, step: int) -> None:
        seen.append(torch.rand(()).item())
        random_gradients(model, step)

    compare(sgd, sgd, gradients=backward, steps=3)
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 3


def test_the_default_problem_depends_on_its_seeds_alone() -> None:
    state = torch.get_rng_state()
    assert torch.equal(random_model(seed=1)["long"], random_model(seed=1)["long"])
    assert not torch.equal(random_model(seed=1)["long"], random_model(seed=2)["long"])
    compare(sgd, sgd, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    model = random_model()
    assert len(model) > engines.FEW  # or foreach would be the loop
    gradients = []
    for step, seed in ((1, 0), (1, 0), (2, 0), (1, 1)):
        random_gradients(model, step, seed=seed)
        gradients.append(model["long"].grad)
    first, again, later, other = gradients
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert first[:100].abs().mean() > 1e5 * first[-100:].abs().mean()


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3"])
def test_no_steps_are_no_certificate(steps: Any) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number from 1 up, not"):
        compare(sgd, sgd, steps=steps)


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"to return a torch.optim.Optimizer, not None"):
        compare(sgd, lambda params: None)  # type: ignore[arg-type, return-value]  # the mistake


def test_an_optimizer_of_other_parameters_is_no_certificate() -> None:
    others = [nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match="Adam holds none of the parameters it was given"):
        compare(torch.optim.Adam, lambda params: torch.optim.Adam(others))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ulps_are_counted_in_representable_numbers(dtype: torch.dtype) -> None:
    def distance(a: float | Tensor, b: float | Tensor) -> int:
        x, y = (torch.as_tensor(v, dtype=dtype) for v in (a, b))
        assert ulp_distance(x, y) == ulp_distance(y, x)
        return int(ulp_distance(x, y))

    info = torch.finfo(dtype)
    one, zero, inf = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype), math.inf
    assert distance(1.0, 1.0) == 0
    assert distance(1.0, 1.0 + info.eps) == 1
    assert distance(1.0, 1.0 - info.eps / 2) == 1
    assert distance(-1.0, -1.0 - info.eps) == 1
    assert distance(1.0, 2.0) == round(1 / info.eps)
    least = torch.nextafter(zero, one) if dtype.itemsize > 2 else info.smallest_normal * info.eps
    assert distance(least, 0.0) == 1
    assert distance(least, -0.0) == 2
    assert distance(least, -least) == 3
    assert distance(0.0, -0.0) == 1
    assert distance(info.max, inf) == 1
    assert distance(math.nan, math.nan) == 0
    assert distance(math.nan, inf) == FAR
    everything = distance(-inf, inf)
    assert everything == (FAR if dtype == torch.float64 else 2 * distance(0.0, inf) + 1)


def test_ulps_of_whole_numbers_are_their_difference() -> None:
    a, b = torch.tensor([3, -2, 7]), torch.tensor([5, 2, 7])
    assert ulp_distance(a, b).tolist() == [2, 4, 0]
    a, b = torch.tensor([200], dtype=torch.uint8), torch.tensor([100], dtype=torch.uint8)
    assert ulp_distance(a, b).tolist() == [100]


def test_ulps_of_unlike_shapes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        ulp_distance(torch.ones(2), torch.ones(3))
