"""Wrong optimizers are wrong in the way that they say, and in no other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.reproductions.wrong import OF_DECAY, WRONG, Optimizer, wrong_for
from torch_scratch_optim import ScratchAdaGrad, ScratchAdam, ScratchMomentum, ScratchSGD

OPTIONS: dict[Optimizer, dict[str, Any]] = {
    ScratchSGD: {"lr": 0.1},
    ScratchMomentum: {"lr": 0.1, "momentum": 0.9},
    ScratchAdaGrad: {"lr": 0.1, "eps": 1e-2},
    ScratchAdam: {"lr": 0.1, "eps": 1e-2},
}
CASES = [(name, right) for name, replaced in WRONG.items() for right in replaced]


def trained(optimizer: Optimizer, steps: int = 5, **options: Any) -> Tensor:
    """A parameter after steps whose gradients are 1, 2, … hundredths."""
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    made = optimizer([p], **options)
    for step in range(1, steps + 1):
        p.grad = torch.full_like(p, 0.01 * step)
        made.step()
    return p.detach()


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("name", "right"), CASES, ids=[f"{n}-{r.__name__}" for n, r in CASES])
def test_a_wrong_optimizer_moves_otherwise(name: str, right: Optimizer, foreach: bool) -> None:
    options = OPTIONS[right] | {"weight_decay": 0.1 * (name in OF_DECAY), "foreach": foreach}
    wrong = trained(WRONG[name][right], **options)
    assert wrong.isfinite().all()
    assert not torch.allclose(wrong, trained(right, **options), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "right", "options", "as_right", "its_options"),
    [
        ("momentum 0.1 lower", ScratchMomentum, {}, ScratchMomentum, {"momentum": 0.8}),
        ("momentum 0.1 lower", ScratchAdam, {}, ScratchAdam, {"betas": (0.8, 0.999)}),
        ("momentum dampened", ScratchMomentum, {}, ScratchMomentum, {"dampening": 0.9}),
        ("no weight decay", ScratchAdam, {"weight_decay": 0.1}, ScratchAdam, {}),
        ("no weight decay", ScratchSGD, {"weight_decay": 0.1}, ScratchSGD, {}),
        *(("learning rate × 1.5", one, {}, one, {"lr": 0.1 * 1.5}) for one in OPTIONS),
    ],
)
def test_it_is_the_right_one_with_other_options(
    name: str, right: Optimizer, options: dict[str, Any], as_right: Optimizer,
    its_options: dict[str, Any],
) -> None:  # fmt: skip
    wrong = trained(WRONG[name][right], **(OPTIONS[right] | options))
    # 0.9 − 0.1 is not 0.8 to the last bit.
    torch.testing.assert_close(
        wrong, trained(as_right, **(OPTIONS[right] | its_options)), rtol=1e-12, atol=0
    )


def adam_step(eps_inside: float, eps: float, corrected: bool) -> float:
    """1 after a first step along a gradient of 0.01."""
    m, v = 0.1 * 0.01, 0.001 * 0.01**2
    if corrected:
        m, v = m / 0.1, v / 0.001
    return 1 - 0.1 * m / (math.sqrt(v + eps_inside) + eps)


@pytest.mark.parametrize(
    ("name", "right", "expected"),
    [
        ("ε inside the root", ScratchAdam, adam_step(1e-2, 0, True)),
        ("no bias correction", ScratchAdam, adam_step(0, 1e-2, False)),
        ("ε inside the root", ScratchAdaGrad, 1 - 0.1 * 0.01 / math.sqrt(0.01**2 + 1e-2)),
    ],
)
def test_a_first_step_follows_the_wrong_equation(
    name: str, right: Optimizer, expected: float
) -> None:
    found = trained(WRONG[name][right], steps=1, **OPTIONS[right])
    # A few roundings: the equations are evaluated in another order.
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-12, atol=0)


def test_decay_after_the_step_multiplies_the_parameter() -> None:
    wrong = WRONG["decay after the step"][ScratchMomentum]
    found = trained(wrong, steps=1, lr=0.1, weight_decay=0.5)
    torch.testing.assert_close(
        found, torch.full_like(found, (1 - 0.1 * 0.01) * (1 - 0.1 * 0.5)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("right", OPTIONS)
def test_never_trained_stays_where_it_was(right: Optimizer) -> None:
    found = trained(WRONG["never trained"][right], **OPTIONS[right], weight_decay=0.1)
    assert torch.equal(found, torch.ones_like(found))


@pytest.mark.parametrize(
    ("optimizers", "decays", "absent"),
    [
        ((ScratchSGD,), False, "ε inside the root"),
        ((ScratchSGD,), True, "decay after the step"),
        ((ScratchAdam,), False, "no weight decay"),
        ((ScratchAdam,), True, "momentum dampened"),
    ],
)
def test_only_those_are_tried_that_differ(
    optimizers: tuple[Optimizer, ...], decays: bool, absent: str
) -> None:
    names = wrong_for(optimizers, decays)
    assert absent not in names
    assert names[-2:] == ["learning rate × 1.5", "never trained"]
    assert ("no weight decay" in names) is decays
    assert wrong_for((), True) == []
