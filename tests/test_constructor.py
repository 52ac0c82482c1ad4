"""Signatures, options and errors of constructors are torch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch_scratch_optim as scratch

from .cases import CASES, PAIRS, SUPERSETS, Case, each_optimizer, leaves, parameters, train

# Where a default differs: ScratchMomentum is SGD with momentum.
OWN_DEFAULTS = {"Momentum": {"momentum": 0.9}}


@each_optimizer
def test_constructor_signatures_are_torchs_to_the_letter(case: Case) -> None:
    ours, theirs, _ = PAIRS[case.optimizer]
    mine = [
        (p.name, p.kind, p.default)
        for p in inspect.signature(ours).parameters.values()
        if p.name not in SUPERSETS.get(case.optimizer, {})
    ]
    own = OWN_DEFAULTS.get(case.optimizer, {})
    assert mine == [
        (p.name, p.kind, own.get(p.name, p.default))
        for p in inspect.signature(theirs).parameters.values()
    ]


@each_optimizer
def test_defaults_hold_options_that_torch_lacks_when_asked_for(case: Case) -> None:
    for option in SUPERSETS.get(case.optimizer, {}):
        asked = case.ours(parameters(), **{option: True})
        assert asked.defaults[option] is True
        assert asked.param_groups[0][option] is True
        assert option not in case.ours(parameters()).defaults


def test_constructor_has_torchs_spellings() -> None:
    assert scratch.ScratchAdagrad is scratch.ScratchAdaGrad
    assert scratch.ScratchRMSprop is scratch.ScratchRMSProp


@pytest.mark.parametrize("case", [c for c in CASES if len(c.options) == 1], ids=str)
def test_constructor_passes_every_option_on(case: Case) -> None:
    plain, optioned = Case(case.optimizer).ours(parameters()), case.ours(parameters())
    for _ in train(plain, optioned, steps=range(5)):
        pass
    assert not torch.equal(leaves(plain)[0], leaves(optioned)[0])


TWO_ELEMENTS = torch.tensor([0.1, 0.2])
BAD: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("SGD", "Momentum", "AdaGrad", "RMSProp", "Adam", "AdamW"), {"lr": -1.0}),
    (("SGD", "Momentum", "AdaGrad", "RMSProp", "Adam", "AdamW"), {"lr": TWO_ELEMENTS}),
    (("SGD", "Momentum", "AdaGrad", "RMSProp", "Adam", "AdamW"), {"weight_decay": -1.0}),
    (("AdaGrad", "RMSProp", "Adam", "AdamW"), {"lr": float("nan")}),
    (("AdaGrad", "RMSProp", "Adam", "AdamW"), {"eps": -1.0}),
    (("SGD", "Momentum", "RMSProp"), {"momentum": -1.0}),
    (("SGD",), {"nesterov": True}),
    (("SGD", "Momentum"), {"momentum": 0.9, "nesterov": True, "dampening": 0.1}),
    (("AdaGrad",), {"lr_decay": -1.0}),
    (("AdaGrad",), {"initial_accumulator_value": -1.0}),
    (("RMSProp",), {"alpha": -1.0}),
    (("Adam", "AdamW"), {"betas": (1.0, 0.9)}),
    (("Adam", "AdamW"), {"betas": (0.9, -0.1)}),
    (("Adam", "AdamW"), {"betas": (0.9, torch.tensor(0.9))}),
    (("Adam", "AdamW"), {"betas": (TWO_ELEMENTS[:1], torch.tensor(0.9)), "foreach": True}),
    (("Adam", "AdamW"), {"lr": torch.tensor(0.1), "foreach": True}),
    (("SGD", "Momentum", "AdaGrad", "Adam", "AdamW"), {"fused": True, "foreach": True}),
    (("SGD", "Momentum", "AdaGrad", "Adam", "AdamW"), {"fused": True, "differentiable": True}),
    (("SGD", "Adam"), {"no_such_option": 1}),
]


def error_of(make: Callable[[], object]) -> tuple[type[Exception], str]:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what is asked
        make()
    return caught.type, str(caught.value).replace("Scratch", "").replace("Momentum.", "SGD.")


@pytest.mark.parametrize(
    "case", [Case(name, options) for names, options in BAD for name in names], ids=str
)
def test_constructor_refuses_bad_options_in_torchs_words(case: Case) -> None:
    theirs = PAIRS[case.optimizer][1]
    twin = PAIRS[case.optimizer][2] | case.options
    expected = error_of(lambda: theirs(parameters(), **twin))
    assert error_of(lambda: case.ours(parameters())) == expected


def non_leaf() -> torch.Tensor:
    return torch.ones(2, requires_grad=True) * 2


BAD_PARAMETERS: dict[str, Callable[[], Any]] = {
    "nothing": list,
    "a tensor": lambda: torch.ones(2),
    "a non-leaf": lambda: [non_leaf()],
    "a number": lambda: [1.0],
    "in two groups": lambda: [{"params": p} for p in [nn.Parameter(torch.ones(1))] * 2],
    "some named": lambda: [("a", nn.Parameter(torch.ones(1))), nn.Parameter(torch.ones(1))],
    "a group without params": lambda: [{"lr": 0.1}],
    "a set in a group": lambda: [{"params": {nn.Parameter(torch.ones(1))}}],
}


@pytest.mark.parametrize("wrong", BAD_PARAMETERS)
@each_optimizer
def test_constructor_refuses_bad_parameters_in_torchs_words(case: Case, wrong: str) -> None:
    twin: Any = PAIRS[case.optimizer][1]
    expected = error_of(lambda: twin(BAD_PARAMETERS[wrong]()))
    assert error_of(lambda: case.ours(BAD_PARAMETERS[wrong]())) == expected


NOT_NUMBERS = {
    "1e-3": "is the string '1e-3': write it without quotes, in YAML with a decimal point",
    None: "is None",
    1j: "is 1j",
}


@pytest.mark.parametrize("in_group", [False, True], ids=["constructor", "group"])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=str)
@each_optimizer
def test_constructor_refuses_options_that_are_no_numbers_by_name(
    case: Case, value: Any, in_group: bool
) -> None:
    ours, _, _ = PAIRS[case.optimizer]
    numbers = [
        name
        for name, default in case.ours(parameters()).defaults.items()
        if isinstance(default, (int, float)) and not isinstance(default, bool)
    ]
    assert {"lr", "weight_decay"} <= set(numbers)
    for name in numbers:
        groups = [{"params": parameters(), **({name: value} if in_group else {})}]
        with pytest.raises(TypeError, match=f"^{name} must be a number .* {NOT_NUMBERS[value]}"):
            ours(groups, **({} if in_group else {name: value}))


@pytest.mark.parametrize("in_group", [False, True], ids=["constructor", "group"])
@each_optimizer
def test_constructor_refuses_flags_that_are_strings_by_name(case: Case, in_group: bool) -> None:
    ours, _, _ = PAIRS[case.optimizer]
    flags = [
        name
        for name, default in case.ours(parameters()).defaults.items()
        if (default is None or isinstance(default, bool)) and name != "decoupled_weight_decay"
    ]
    assert {"maximize", "foreach"} <= set(flags)
    for name in flags:
        wrong: dict[str, Any] = {name: "False"}
        groups = [{"params": parameters(), **(wrong if in_group else {})}]
        with pytest.raises(TypeError, match=f"{name} must be True or False, but is the string 'Fa"):
            ours(groups, **({} if in_group else wrong))


@pytest.mark.parametrize("betas", [0.9, None, (0.9,), (0.9, 0.99, 0.999), ("0.9", 0.999)], ids=str)
@pytest.mark.parametrize("in_group", [False, True], ids=["constructor", "group"])
def test_constructor_refuses_betas_that_are_not_two_numbers(betas: Any, in_group: bool) -> None:
    groups = [{"params": parameters(), **({"betas": betas} if in_group else {})}]
    with pytest.raises(TypeError, match=r"^betas(\[0\])? must be (two numbers|a number)"):
        scratch.ScratchAdam(groups, **({} if in_group else {"betas": betas}))
