"""The inputs of torch's own optimizer tests, tried on ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import PAIRS, Case, assert_equal_state, parameters, train

pytest.importorskip("expecttest", reason="torch's own tests need it: pip install expecttest")
common: Any = pytest.importorskip("torch.testing._internal.common_optimizers")

INFOS = [
    (name, info)
    for name, (_, theirs, _) in PAIRS.items()
    for info in common.optim_db
    if info.optim_cls is theirs and name != "Momentum"
]
INPUTS = [
    pytest.param(Case(name, given.kwargs), id=f"{name}-{given.desc}")
    for name, info in INFOS
    for given in info.optim_inputs_func(device="cpu")
    if not given.kwargs.get("capturable")
]
ERRORS = [
    pytest.param(name, given, id=f"{name}-{i}")
    for name, info in INFOS
    for i, given in enumerate(info.optim_error_inputs_func(device="cpu", dtype=torch.float32))
]


def test_torchs_suite_knows_all_of_our_twins() -> None:
    assert {name for name, _ in INFOS} == PAIRS.keys() - {"Momentum"}
    assert len(INPUTS) >= 30
    assert len(ERRORS) >= 40


@pytest.mark.parametrize("case", INPUTS)
def test_torchs_own_inputs_give_torchs_bits(case: Case) -> None:
    ours, theirs = case.ours(parameters()), case.torchs(parameters())
    for step in train(ours, theirs, steps=range(20)):
        assert_equal_state(ours, theirs, f"step {step}")


@pytest.mark.parametrize(("name", "given"), ERRORS)
def test_torchs_own_errors_are_raised(name: str, given: Any) -> None:
    wrong = given.optimizer_error_input
    ours = PAIRS[name][0]
    if given.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        if issubclass(given.error_type, Warning):
            with pytest.warns(given.error_type, match=given.error_regex):
                ours(wrong.params, **wrong.kwargs)
        else:
            with pytest.raises(given.error_type, match=given.error_regex):
                ours(wrong.params, **wrong.kwargs)
    else:
        optimizer = ours(wrong.params, **wrong.kwargs)
        with pytest.raises(given.error_type, match=given.error_regex):
            optimizer.step()
