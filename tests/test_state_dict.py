"""Checkpoints pass between ours and torch's in the middle of a run, which goes on unchanged."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from .cases import (
    DEVICE,
    Case,
    assert_close_state,
    assert_equal_state,
    each_case,
    each_optimizer,
    leaves,
    parameters,
    train,
)


def through_a_file(optimizer: Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def copy_parameters(source: Optimizer, target: Optimizer) -> None:
    with torch.no_grad():
        for p, q in zip(leaves(source), leaves(target), strict=True):
            q.copy_(p)


@pytest.mark.parametrize("to", ["torch", "ours"])
@each_case
def test_state_dict_takes_a_run_to_the_other_library(case: Case, to: str) -> None:
    makers = (case.ours, case.torchs) if to == "torch" else (case.torchs, case.ours)
    first, undisturbed = makers[0](parameters()), makers[0](parameters())
    for _ in train(first, undisturbed, steps=range(10)):
        pass
    # Other hyper-parameters, so that only the checkpoint can bring the right ones.
    second = makers[1](parameters(), lr=123.0)
    copy_parameters(first, second)
    second.load_state_dict(through_a_file(first))
    if to == "torch":  # ours leaves open what torch does by foreach, with other bits on a GPU
        second.param_groups[0]["foreach"] = False
    for step in train(second, undisturbed, steps=range(10, 30)):
        assert_equal_state(second, undisturbed, f"step {step}")


@each_case
def test_state_dict_has_torchs_keys(case: Case) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    for _ in train(ours, theirs, steps=range(2)):
        pass
    mine, their = ours.state_dict(), theirs.state_dict()
    assert {i: list(s) for i, s in mine["state"].items()} == {
        i: list(s) for i, s in their["state"].items()
    }
    assert list(mine["param_groups"][0]) == list(their["param_groups"][0])


@each_optimizer
def test_load_state_dict_gives_an_old_checkpoint_torchs_options(case: Case) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    for _ in train(ours, theirs, steps=range(3)):
        pass
    old = copy.deepcopy(theirs.state_dict())
    young = {"maximize", "foreach", "capturable", "differentiable", "fused", "nesterov", "centered"}
    if case.optimizer == "RMSProp":
        young.add("momentum")
    for option in young | {"amsgrad", "decoupled_weight_decay"}:
        old["param_groups"][0].pop(option, None)
    for state in old["state"].values():
        if "step" in state:
            state["step"] = int(state["step"])  # a plain number, before torch 1.12
    ours.load_state_dict(copy.deepcopy(old))
    theirs.load_state_dict(copy.deepcopy(old))
    for group in theirs.param_groups:
        group["foreach"] = False
    for step in train(ours, theirs, steps=range(3, 8)):
        assert_equal_state(ours, theirs, f"step {step}")


def test_load_state_dict_takes_a_momentum_buffer_of_none_for_a_first_step() -> None:
    case = Case("Momentum")
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    state = {
        "state": {i: {"momentum_buffer": None} for i in range(len(leaves(ours)))},
        "param_groups": theirs.state_dict()["param_groups"],
    }
    ours.load_state_dict(copy.deepcopy(state))
    theirs.load_state_dict(copy.deepcopy(state))
    for step in train(ours, theirs, steps=range(5)):
        assert_equal_state(ours, theirs, f"step {step}")


@each_optimizer
def test_state_dict_keeps_names_of_parameters(case: Case) -> None:
    names = [f"layer{i}" for i in range(len(parameters()))]
    ours, theirs = (
        make(zip(names, parameters(), strict=True)) for make in (case.ours, case.torchs)
    )
    for step in train(ours, theirs, steps=range(3)):
        assert_equal_state(ours, theirs, f"step {step}")
    assert ours.state_dict()["param_groups"][0]["param_names"] == names
    assert theirs.state_dict()["param_groups"][0]["param_names"] == names


@each_optimizer
def test_load_state_dict_of_contradictory_options_changes_nothing(case: Case) -> None:
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(2)):
        pass
    before = copy.deepcopy(ours.state_dict())
    wanting = copy.deepcopy(before)
    wanting["param_groups"][0] |= {"fused": True, "differentiable": True}
    wanting["state"] = {}
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        ours.load_state_dict(wanting)
    after = ours.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()


def test_load_state_dict_of_adam_leaves_adamw_adamw() -> None:
    adamw = Case("AdamW").ours(parameters())
    adamw.load_state_dict(Case("Adam").torchs(parameters()).state_dict())
    assert adamw.param_groups[0]["decoupled_weight_decay"] is True


@each_optimizer
def test_load_state_dict_refuses_other_groups_in_torchs_words(case: Case) -> None:
    few = parameters()[:2]
    for wrong in (
        case.torchs(few).state_dict(),
        case.torchs([{"params": few}, {"params": parameters()}]).state_dict(),
    ):
        messages = []
        for optimizer in (case.ours(parameters()), case.torchs(parameters())):
            with pytest.raises(ValueError, match="loaded state dict") as error:
                optimizer.load_state_dict(wrong)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


THEIRS = [
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
]


@pytest.mark.parametrize("foreign", THEIRS, ids=lambda kind: kind.__name__)
@each_optimizer
def test_load_state_dict_refuses_what_torch_cannot_step_with(
    case: Case, foreign: type[Optimizer]
) -> None:
    source = foreign(parameters(), lr=0.25)  # type: ignore[call-arg]  # all of them take it
    for _ in train(source, steps=range(2)):
        pass
    theirs = case.torchs(parameters())
    theirs.load_state_dict(through_a_file(source))
    try:
        for _ in train(theirs, steps=range(1)):
            pass
        can_step = True
    except KeyError:
        can_step = False
    ours = case.ours(parameters())
    for _ in train(ours, steps=range(2)):
        pass
    before = copy.deepcopy(ours.state_dict())
    if can_step:
        ours.load_state_dict(through_a_file(source))
        assert ours.param_groups[0]["lr"] == 0.25
        for _ in train(ours, steps=range(1)):
            pass
    else:
        with pytest.raises(
            ValueError, match=r"^loaded state dict (is of another optimizer|has .* needs)"
        ):
            ours.load_state_dict(through_a_file(source))
        assert_same_checkpoint(ours.state_dict(), before)


def assert_same_checkpoint(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["param_groups"] == b["param_groups"]
    torch.testing.assert_close(a["state"], b["state"], rtol=0, atol=0)


@each_optimizer
def test_load_state_dict_refuses_state_of_other_shapes_by_name(case: Case) -> None:
    def named(*shape: int) -> list[tuple[str, torch.Tensor]]:
        fixed = torch.ones(3, requires_grad=True, device=DEVICE)
        return [("bias", fixed), ("weight", torch.ones(shape, requires_grad=True, device=DEVICE))]

    options = {"momentum": 0.5} if case.optimizer == "SGD" else {}
    source = case.torchs(named(2, 5), **options)
    for _ in train(source, steps=range(2)):
        pass
    for shape in ((5, 2), (2, 5, 1), (10,), ()):
        ours = case.ours(named(*shape), **options)
        before = copy.deepcopy(ours.state_dict())
        with pytest.raises(ValueError, match=r"of the shape \[2, 5\] for parameter 'weight', whi"):
            ours.load_state_dict(source.state_dict())
        assert_same_checkpoint(ours.state_dict(), before)


@pytest.mark.parametrize("absent", [False, True], ids=["is None", "is absent"])
@pytest.mark.parametrize("name", ["AdaGrad", "RMSProp", "Adam", "AdamW"])
def test_load_state_dict_refuses_state_in_part_by_name(name: str, absent: bool) -> None:
    case = Case(name)
    source = case.torchs(parameters())
    for _ in train(source, steps=range(2)):
        pass
    for key in source.state_dict()["state"][1]:
        checkpoint = copy.deepcopy(source.state_dict())
        checkpoint["state"][1][key] = None
        if absent:
            del checkpoint["state"][1][key]
        ours = case.ours(parameters())
        before = copy.deepcopy(ours.state_dict())
        with pytest.raises(ValueError, match=f"parameter 1 of group 0, but .* needs .*'{key}'"):
            ours.load_state_dict(checkpoint)
        assert_same_checkpoint(ours.state_dict(), before)


def test_load_state_dict_points_to_the_optimizers_part_of_a_checkpoint() -> None:
    ours = Case("Adam").ours(parameters())
    with pytest.raises(
        ValueError, match="has no 'state', 'param_groups', but 'model', 'optimizer'"
    ):
        ours.load_state_dict({"model": {}, "optimizer": ours.state_dict()})


def test_load_state_dict_lets_a_hook_mend_a_checkpoint() -> None:
    ours, theirs = Case("Adam").ours(parameters()), torch.optim.Adam(parameters())
    for _ in train(theirs, steps=range(2)):
        pass
    good = copy.deepcopy(theirs.state_dict())
    bad = copy.deepcopy(good)
    del bad["state"][1]["exp_avg"]

    def mend(_: Optimizer, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return checkpoint | {"state": good["state"]}

    ours.register_load_state_dict_pre_hook(mend)
    for _ in range(2):
        ours.load_state_dict(bad)
        assert_same_checkpoint(ours.state_dict(), good)
    assert len(ours._optimizer_load_state_dict_pre_hooks) == 1


def test_load_state_dict_leaves_lazy_parameters_to_their_first_forward() -> None:
    lazy = torch.nn.LazyLinear(2)
    ours = Case("Adam").ours(lazy.parameters())
    trained = torch.nn.Linear(3, 2)
    theirs = torch.optim.Adam(trained.parameters())
    trained(torch.ones(1, 3)).sum().backward()
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    lazy(torch.ones(1, 3)).sum().backward()
    ours.step()
    assert ours.state[lazy.weight]["step"] == 2


UNUSABLE: list[tuple[str, Any, type[Exception], str]] = [
    ("lr", "1e-3", TypeError, "lr must be a number .* the string '1e-3'"),
    ("lr", None, TypeError, "lr must be a number .* is None"),
    ("weight_decay", None, TypeError, "weight_decay must be a number"),
    ("weight_decay", ..., ValueError, "lacks the option 'weight_decay'"),
]


@pytest.mark.parametrize(("option", "value", "error", "words"), UNUSABLE)
@each_optimizer
def test_load_state_dict_refuses_options_that_no_step_can_use(
    case: Case, option: str, value: Any, error: type[Exception], words: str
) -> None:
    ours = case.ours(parameters())
    before = copy.deepcopy(ours.state_dict())
    checkpoint = copy.deepcopy(before)
    checkpoint["param_groups"][0][option] = value
    if value is ...:
        del checkpoint["param_groups"][0][option]
    with pytest.raises(error, match=f"{words}|another optimizer.* no option '{option}'"):
        ours.load_state_dict(checkpoint)
    assert_same_checkpoint(ours.state_dict(), before)


def test_load_state_dict_refuses_state_that_is_no_tensor() -> None:
    ours = Case("Adam").ours(parameters())
    for _ in train(ours, steps=range(1)):
        pass
    checkpoint = copy.deepcopy(ours.state_dict())
    checkpoint["state"][1]["exp_avg"] = [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="'exp_avg' of parameter 1 of group 0, which must"):
        ours.load_state_dict(checkpoint)


@each_optimizer
def test_state_dict_a_fused_run_changes_engines_and_libraries(case: Case) -> None:
    def torchs(p: list[Tensor]) -> Optimizer:
        fast = case.optimizer != "RMSProp"
        return case.torchs(p, foreach=None, fused=True) if fast else case.torchs(p)

    makers: list[Callable[[list[Tensor]], Optimizer]] = [
        lambda p: case.ours(p, fused=True),
        torchs,
        lambda p: case.ours(p, fused=True),
        lambda p: case.ours(p, foreach=True),
        lambda p: case.ours(p, fused=True),
        lambda p: case.ours(p, foreach=False),
        torchs,
    ]
    undisturbed = case.ours(dense())
    running: Optimizer = case.ours(dense())
    for i, make in enumerate(makers):
        following = make([p.detach().clone().requires_grad_() for p in leaves(running)])
        options = [{k: g.get(k) for k in ("fused", "foreach")} for g in following.param_groups]
        following.load_state_dict(copy.deepcopy(running.state_dict()))
        for group, own in zip(following.param_groups, options, strict=True):
            group.update(own)
        running = following
        for _ in train(running, undisturbed, steps=range(3 * i, 3 * i + 3)):
            pass
    assert_close_state(running, undisturbed)  # other engines and libraries round otherwise


def dense() -> list[Tensor]:
    """Torch's fused kernels get other layouts wrong."""
    return [torch.linspace(-1, 1, n).requires_grad_() for n in (3, 100, 5000)]
