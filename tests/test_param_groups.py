"""Parameter groups: their options, what is added to them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torch_scratch_optim as scratch
from torch_scratch_optim import ScratchAdam, ScratchSGD

from .cases import (
    PAIRS,
    Case,
    assert_equal_state,
    each_engine,
    each_optimizer,
    leaves,
    loop_and_foreach,
    parameters,
    torchs_adagrad_makes_state_late,
    train,
)


@each_optimizer
def test_param_groups_hold_torchs_options(case: Case) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters(), foreach=None)
    mine, their = ours.param_groups[0], theirs.param_groups[0]
    assert {k: v for k, v in mine.items() if k != "params"} == {
        k: v for k, v in their.items() if k != "params"
    }
    assert list(mine) == list(their)
    if case.optimizer != "AdamW":  # whose own defaults torch's AdamW does not take, either
        theirs = PAIRS[case.optimizer][1](parameters(), **ours.defaults)
        assert list(theirs.defaults) == list(ours.defaults)


@pytest.mark.parametrize("name", ["SGD", "Momentum", "AdaGrad"])
def test_param_groups_capturable_is_ignored_where_torch_ignores_it(name: str) -> None:
    ours, theirs = Case(name).ours(parameters()), Case(name).torchs(parameters())
    for twin in (ours, theirs):
        twin.param_groups[0]["capturable"] = True
    for _ in train(ours, theirs, steps=range(3)):
        for p, q in zip(leaves(ours), leaves(theirs), strict=True):
            # The numbers enter by operations of their own.
            torch.testing.assert_close(p, q)


@loop_and_foreach
@each_optimizer
def test_param_groups_keep_their_own_options(case: Case, foreach: bool) -> None:
    def groups() -> list[dict[str, object]]:
        first, *rest = parameters()
        return [{"params": [first], "lr": 0.5, "weight_decay": 0.2}, {"params": rest}]

    ours, theirs = case.ours(groups(), foreach=foreach), case.torchs(groups())
    for step in train(ours, theirs, steps=range(10)):
        assert_equal_state(ours, theirs, f"step {step}")
    if case.optimizer == "AdaGrad" and not torchs_adagrad_makes_state_late():
        return  # torch 2.11 fails at the next step
    for optimizer in (ours, theirs):
        late = parameters(seed=1)
        optimizer.add_param_group({"params": late, "lr": 0.03})
    for step in train(ours, theirs, steps=range(10, 20)):
        assert_equal_state(ours, theirs, f"step {step}")


@each_optimizer
def test_add_param_group_refuses_contradictory_options_at_once(case: Case) -> None:
    ours = case.ours(parameters())
    wrong = {"params": [nn.Parameter(torch.ones(2))], "fused": True, "differentiable": True}
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        ours.add_param_group(wrong)
    assert len(ours.param_groups) == 1


BAD_GROUPS = [
    ("SGD", {"lr": -1.0}, "Invalid learning rate: -1.0"),
    ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ("Momentum", {"momentum": -0.5}, "Invalid momentum value: -0.5"),
    ("AdaGrad", {"lr_decay": -0.5}, "Invalid lr_decay value: -0.5"),
    ("RMSProp", {"alpha": -0.5}, "Invalid alpha value: -0.5"),
    ("Adam", {"betas": (0.5, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ("Adam", {"lr": float("nan")}, "Invalid learning rate: nan"),
    ("AdamW", {"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ("AdamW", {"weight_decay": -0.5}, "Invalid weight_decay value: -0.5"),
    ("AdamW", {"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
]


@pytest.mark.parametrize(("optimizer", "options", "words"), BAD_GROUPS, ids=str)
def test_add_param_group_checks_options_as_the_constructor_does(
    optimizer: str, options: dict[str, Any], words: str
) -> None:
    case = Case(optimizer)
    with pytest.raises(ValueError, match=words):
        case.ours(parameters(), **options)
    with pytest.raises(ValueError, match=words):
        case.ours([{"params": parameters(), **options}])
    ours = case.ours(parameters())
    with pytest.raises(ValueError, match=words):
        ours.add_param_group({"params": parameters(), **options})
    assert len(ours.param_groups) == 1


MISSPELT = {
    "learning_rate": "lr",
    "lrr": "lr",
    "weight_decy": "weight_decay",
    "wd": "weight_decay",
    "epsilon": "eps",
    "beta": "betas",
    "for_each": "foreach",
    "ams_grad": "amsgrad",
    "LR": "lr",
    "learningRate": "lr",
    "weight-decay": "weight_decay",
    "eps_": "eps",
}
OF_THEIR_OWN = [
    "name",
    "initial_lr",
    "max_lr",
    "lr_scale",
    "layer_decay",
    "weight_decay_scale",
    "x",
]


@pytest.mark.parametrize("name", MISSPELT)
def test_add_param_group_warns_of_a_misspelt_option(name: str) -> None:
    optimizer = scratch.ScratchAdam(parameters())
    with pytest.warns(UserWarning, match=f"{name!r}.*did you mean '{MISSPELT[name]}'") as warned:
        optimizer.add_param_group({"params": parameters(), name: 0.25})
    assert [warning.filename for warning in warned] == [__file__]
    assert optimizer.param_groups[1][name] == 0.25  # as with torch


@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_add_param_group_takes_names_of_others_without_a_word(name: str) -> None:
    for kind, _, _ in PAIRS.values():
        optimizer = kind([{"params": parameters(), name: 0.25}])  # type: ignore[call-arg]  # all of them take it
        assert optimizer.param_groups[0][name] == 0.25  # and warnings are errors


@each_optimizer
def test_param_groups_get_torchs_values_for_options_that_a_checkpoint_lacks(case: Case) -> None:
    groups = []
    for optimizer in (case.ours(parameters()), case.torchs(parameters(), foreach=None)):
        checkpoint = optimizer.state_dict()
        added = scratch.ScratchOptimizer.added_options | PAIRS[case.optimizer][0].added_options
        checkpoint["param_groups"] = [
            {name: value for name, value in group.items() if name not in added}
            for group in checkpoint["param_groups"]
        ]
        optimizer.load_state_dict(checkpoint)
        groups.append({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
    assert list(groups[0].items()) == list(groups[1].items())  # in the same order


def test_param_groups_that_are_gone_are_forgotten() -> None:
    ours = ScratchAdam([torch.ones(2, requires_grad=True)])
    for _ in range(20):
        ours.param_groups.clear()
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        ours.add_param_group({"params": [p]})
        ours.step()
    assert len(ours._checked) == 1


@each_engine
def test_param_groups_rows_and_state_may_change_at_once(engine: dict[str, Any]) -> None:
    # Two parameters with momentum are as many tensors as three without.
    ps, qs = ([torch.full((5,), i + 1.0) for i in range(3)] for _ in range(2))
    ours = ScratchSGD(ps, lr=0.1, momentum=0.9, **engine)
    theirs = torch.optim.SGD(qs, lr=0.1, momentum=0.9)
    for step, momentum in enumerate([0.9, 0.0, 0.9, 0.0]):
        for twin in (ours, theirs):
            twin.param_groups[0]["momentum"] = momentum
            for i, p in enumerate(leaves(twin)):
                p.grad = torch.full((5,), step + i + 2.0) if i < 2 or not momentum else None
            twin.step()
        assert all(map(torch.equal, ps, qs)), f"step {step}"


@each_engine
def test_param_groups_options_may_exchange_state(engine: dict[str, Any]) -> None:
    ours = Case("RMSProp").ours([p := torch.ones(5, requires_grad=True)], **engine)
    theirs = Case("RMSProp").torchs([q := torch.ones(5, requires_grad=True)])
    for step, (momentum, centered) in enumerate([(0.9, True), (0.9, False), (0.0, True)]):
        for twin in (ours, theirs):
            twin.param_groups[0] |= {"momentum": momentum, "centered": centered}
            (leaf,) = leaves(twin)
            leaf.grad = torch.linspace(1, 2, 5) * (step + 1)
            twin.step()
        torch.testing.assert_close(p, q)  # a kernel rounds the root correctly, torch may not
