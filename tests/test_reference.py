"""The rules against the papers' equations on Python floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import torch_scratch_optim as scratch

from . import reference
from .cases import DEVICE

GRADIENTS = [0.3, -1.2, 0.0, 2.5e-4, 0.7, -0.1, 5.0, -3e-3] * 10

PAPERS: list[tuple[Callable[..., Iterator[float]], dict[str, Any], type, dict[str, Any]]] = [
    (reference.sgd, {"lr": 0.1}, scratch.ScratchSGD, {"lr": 0.1}),
    (reference.momentum, {"lr": 0.1, "momentum": 0.9}, scratch.ScratchMomentum, {"lr": 0.1}),
    (
        reference.momentum,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
        scratch.ScratchSGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
    ),
    (reference.adagrad, {"lr": 0.1, "eps": 1e-3}, scratch.ScratchAdaGrad, {"lr": 0.1, "eps": 1e-3}),
    (
        reference.rmsprop,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3},
        scratch.ScratchRMSProp,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3},
    ),
    (
        reference.graves,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5},
        scratch.ScratchRMSProp,
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": 0.5, "centered": True},
    ),
    (
        reference.adam,
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3},
        scratch.ScratchAdam,
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    (
        reference.adam,
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "amsgrad": True},
        scratch.ScratchAdam,
        {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "amsgrad": True},
    ),
    (
        reference.adam,
        {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decay": 0.2},
        scratch.ScratchAdamW,
        {"lr": 0.1, "weight_decay": 0.2},
    ),
]


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize(
    ("paper", "symbols", "optimizer", "options"),
    PAPERS,
    ids=[f"{o.__name__}-{p.__name__}-{i}" for i, (p, _, o, _) in enumerate(PAPERS)],
)
def test_the_rule_is_the_papers(
    paper: Callable[..., Iterator[float]],
    symbols: dict[str, Any],
    optimizer: Callable[..., scratch.ScratchOptimizer],
    options: dict[str, Any],
    foreach: bool,
) -> None:
    theta = torch.tensor([0.5], dtype=torch.float64, requires_grad=True, device=DEVICE)
    ours = optimizer([theta], foreach=foreach, **options)
    for g, expected in zip(GRADIENTS, paper(0.5, GRADIENTS, **symbols), strict=True):
        theta.grad = theta.new_tensor([g])
        ours.step()
        # The equations' order of operations is not the rule's: a few roundings per step in float64.
        assert theta.item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
