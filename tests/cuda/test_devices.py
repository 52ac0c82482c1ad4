"""Several GPUs, and a current device that is not the parameters'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ..cases import (
    DEVICE,
    Case,
    assert_equal_state,
    each_loop,
    each_richest,
    leaves,
    parameters,
    train,
)

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="about GPUs: --device cuda"),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


def on_both() -> list[Tensor]:
    made = [p.detach().to(device) for p in parameters() for device in (FIRST, SECOND)]
    return [p.requires_grad_() for p in made]


@each_loop
@each_richest
def test_parameters_on_two_devices_may_share_a_group(case: Case, engine: dict[str, Any]) -> None:
    ours, theirs = case.ours(on_both(), **engine), case.torchs(on_both())
    for step in train(ours, theirs, steps=range(4)):
        assert_equal_state(ours, theirs, f"step {step}")


@pytest.mark.parametrize("engine", [{}, {"fused": True}], ids=["default", "fused"])
@pytest.mark.parametrize("current", [FIRST, SECOND], ids=str)
@each_richest
def test_step_does_not_depend_on_the_current_device(
    case: Case, current: torch.device, engine: dict[str, Any]
) -> None:
    ours, expected = case.ours(on_both(), **engine), case.ours(on_both(), **engine)
    for step in range(3):
        for _ in train(expected, steps=range(step, step + 1)):
            pass
        with torch.cuda.device(current):
            for _ in train(ours, steps=range(step, step + 1)):
                pass
            assert torch.cuda.current_device() == current.index
        assert_equal_state(ours, expected, f"step {step}")


@each_richest
def test_groups_may_be_on_devices_of_their_own(case: Case) -> None:
    def groups() -> list[dict[str, Any]]:
        both = on_both()
        return [{"params": both[::2]}, {"params": both[1::2], "lr": 0.03}]

    ours, theirs = case.ours(groups()), case.torchs(groups())
    for step in train(ours, theirs, steps=range(4)):
        assert_equal_state(ours, theirs, f"step {step}")
    assert {p.device for p in leaves(ours)} == {FIRST, SECOND}
