"""Signatures, options and errors are torch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch_scratch_optim as scratch
from torch_scratch_optim import engines
from torch_scratch_optim.tensor_likes import TensorList

from .cases import (
    CASES,
    PAIRS,
    SUPERSETS,
    Case,
    assert_equal_state,
    leaves,
    parameters,
    torchs_adagrad_makes_state_late,
    train,
)

each_optimizer = pytest.mark.parametrize("case", [Case(n) for n in PAIRS], ids=str)

# Where a default differs: ScratchMomentum is SGD with momentum.
OWN_DEFAULTS = {"Momentum": {"momentum": 0.9}}


@each_optimizer
def test_signatures_are_torchs_to_the_letter(case: Case) -> None:
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
def test_groups_hold_torchs_options(case: Case) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters(), foreach=None)
    mine, their = ours.param_groups[0], theirs.param_groups[0]
    assert {k: v for k, v in mine.items() if k != "params"} == {
        k: v for k, v in their.items() if k != "params"
    }
    assert list(mine) == list(their)
    if case.optimizer != "AdamW":  # whose own defaults torch's AdamW does not take, either
        theirs = PAIRS[case.optimizer][1](parameters(), **ours.defaults)
        assert list(theirs.defaults) == list(ours.defaults)


@each_optimizer
def test_options_that_torch_lacks_are_there_when_asked_for(case: Case) -> None:
    for option in SUPERSETS.get(case.optimizer, {}):
        asked = case.ours(parameters(), **{option: True})
        assert asked.defaults[option] is True
        assert asked.param_groups[0][option] is True
        assert option not in case.ours(parameters()).defaults


@pytest.mark.parametrize("name", ["SGD", "Momentum", "AdaGrad"])
def test_capturable_in_a_group_is_ignored_where_torch_ignores_it(name: str) -> None:
    ours, theirs = Case(name).ours(parameters()), Case(name).torchs(parameters())
    for twin in (ours, theirs):
        twin.param_groups[0]["capturable"] = True
    for _ in train(ours, theirs, steps=range(3)):
        for p, q in zip(leaves(ours), leaves(theirs), strict=True):
            # The numbers enter by operations of their own.
            torch.testing.assert_close(p, q)


def test_torchs_spellings_are_the_same_classes() -> None:
    assert scratch.ScratchAdagrad is scratch.ScratchAdaGrad
    assert scratch.ScratchRMSprop is scratch.ScratchRMSProp


@pytest.mark.parametrize("case", [c for c in CASES if len(c.options) == 1], ids=str)
def test_every_option_changes_the_result(case: Case) -> None:
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
def test_bad_options_are_refused_in_torchs_words(case: Case) -> None:
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
def test_bad_parameters_are_refused_in_torchs_words(case: Case, wrong: str) -> None:
    twin: Any = PAIRS[case.optimizer][1]
    expected = error_of(lambda: twin(BAD_PARAMETERS[wrong]()))
    assert error_of(lambda: case.ours(BAD_PARAMETERS[wrong]())) == expected


@each_optimizer
def test_a_group_of_contradictory_options_is_refused_at_once(case: Case) -> None:
    ours = case.ours(parameters())
    wrong = {"params": [nn.Parameter(torch.ones(2))], "fused": True, "differentiable": True}
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        ours.add_param_group(wrong)
    assert len(ours.param_groups) == 1


SPARSE_WORDS = {
    "SGD": "weight_decay option is not compatible with sparse gradients",
    "Momentum": "weight_decay option is not compatible with sparse gradients",
    "AdaGrad": "weight_decay option is not compatible with sparse gradients",
    "RMSProp": "RMSprop does not support sparse gradients",
    "Adam": "Adam does not support sparse gradients, please consider SparseAdam instead",
    "AdamW": "Adam does not support sparse gradients, please consider SparseAdam instead",
}


@pytest.mark.parametrize("case", [Case(n, {"weight_decay": 0.1}) for n in SPARSE_WORDS], ids=str)
def test_a_sparse_gradient_is_refused_before_anything_moves(case: Case) -> None:
    dense, embedding = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))
    ours = case.ours([{"params": [dense]}, {"params": [embedding]}])
    dense.grad = torch.ones(3)
    embedding.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.ones(1, 2), (4, 2), check_invariants=True
    )
    with pytest.raises(RuntimeError, match=SPARSE_WORDS[case.optimizer]):
        ours.step()
    assert torch.equal(dense, torch.ones(3))
    # AdaGrad alone has state before its first step.
    assert all(state["step"] == 0 for state in ours.state.values())
    assert not ours.state or case.optimizer == "AdaGrad"


@each_optimizer
def test_a_closure_runs_with_gradients_and_its_loss_is_returned(case: Case) -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    ours = case.ours([p])

    def closure() -> float:
        ours.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert ours.step(closure) == 9.0
    assert p.item() < 3.0
    assert ours.step() is None


@each_optimizer
def test_step_hooks_run_around_the_step(case: Case) -> None:
    ours = case.ours(parameters())
    seen: list[tuple[str, float]] = []

    def before(*_: object) -> None:
        seen.append(("before", leaves(ours)[1][0].item()))

    def after(*_: object) -> None:
        seen.append(("after", leaves(ours)[1][0].item()))

    ours.register_step_pre_hook(before)
    ours.register_step_post_hook(after)
    for _ in train(ours, steps=range(1)):
        pass
    assert [name for name, _ in seen] == ["before", "after"]
    assert seen[0][1] != seen[1][1]


@each_optimizer
def test_step_counts_follow_a_default_of_float64(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours, theirs = case.ours(parameters()), case.torchs(parameters())
        for step in train(ours, theirs, steps=range(3)):
            assert_equal_state(ours, theirs, f"step {step}")
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_initial_accumulator_comes_from_the_constructor_not_from_a_group() -> None:
    case = Case("AdaGrad", {"initial_accumulator_value": 0.3})
    for make in (case.ours, case.torchs):
        group = {"params": parameters(), "initial_accumulator_value": 0.7}
        optimizer = make([group])
        if make == case.ours or torchs_adagrad_makes_state_late():
            optimizer.add_param_group({"params": parameters(seed=1)})
        for _ in train(optimizer, steps=range(1)):
            pass
        p = leaves(optimizer)[1]
        assert p.grad is not None
        # s + g² is rounded once in the optimizer and twice here.
        assert torch.allclose(optimizer.state[p]["sum"], 0.3 + p.grad.square(), rtol=1e-6)


def test_adagrads_accumulators_can_be_shared_between_processes() -> None:
    ours = scratch.ScratchAdaGrad(parameters())
    ours.share_memory()
    assert all(ours.state[p]["sum"].is_shared() for p in leaves(ours))


NOT_NUMBERS = {
    "1e-3": "is the string '1e-3': write it without quotes, in YAML with a decimal point",
    None: "is None",
    1j: "is 1j",
}


@pytest.mark.parametrize("in_group", [False, True], ids=["constructor", "group"])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=str)
@each_optimizer
def test_options_that_are_no_numbers_are_refused_by_name(
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
def test_flags_that_are_strings_are_refused_by_name(case: Case, in_group: bool) -> None:
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
def test_betas_that_are_not_two_numbers_are_refused(betas: Any, in_group: bool) -> None:
    groups = [{"params": parameters(), **({"betas": betas} if in_group else {})}]
    with pytest.raises(TypeError, match=r"^betas(\[0\])? must be (two numbers|a number)"):
        scratch.ScratchAdam(groups, **({} if in_group else {"betas": betas}))


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


@pytest.mark.parametrize("engine", [{"foreach": False}, {"foreach": True}, {}], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_weight_decay_of_sgd_may_be_a_tensor(requires_grad: bool, engine: dict[str, Any]) -> None:
    decay = torch.tensor(0.25, requires_grad=requires_grad)
    ours = Case("Momentum").ours(parameters(), weight_decay=decay, **engine)
    theirs = Case("Momentum").torchs(parameters(), weight_decay=decay)
    for step in train(ours, theirs, steps=range(3)):
        assert_equal_state(ours, theirs, f"step {step}")


def test_rows_of_equal_steps_are_gathered_with_a_tensor_lr(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    class Spy(TensorList):
        def __init__(self, tensors: list[torch.Tensor]) -> None:
            gathered.append(len(tensors))
            super().__init__(tensors)

    monkeypatch.setattr(engines, "TensorList", Spy)
    ps = [torch.full((3,), float(i), requires_grad=True) for i in range(40)]
    ours = scratch.ScratchAdam(ps, lr=torch.tensor(0.1), foreach=None)
    for step in range(2):
        for i, p in enumerate(ps):  # half of them begin a step later
            p.grad = torch.full((3,), 1.0 + i) if step or i < 20 else None
        gathered.clear()
        ours.step()
    assert set(gathered) == {20}  # each half at once
