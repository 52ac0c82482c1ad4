"""Gradient release: the recipe trains as usual, and the command measures it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.common.record import read_json
from benchmarks.gradient_release import __main__ as gradient_release
from benchmarks.gradient_release.__main__ import main
from benchmarks.gradient_release.release import release_gradients

from ..cases import PAIRS, Case, assert_equal_state, same_bits

pytestmark = pytest.mark.slow

RECORDED = (
    Path(gradient_release.__file__).parents[1] / "results/gradient_release/gradient_release.json"
)


@pytest.mark.parametrize("case", [Case(name) for name in PAIRS], ids=str)
def test_released_gradients_train_the_same_parameters_and_never_exist_together(case: Case) -> None:
    usual = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 1))
    usual[0].bias.requires_grad_(False)
    released = copy.deepcopy(usual)
    optimizer = case.torchs(usual.parameters())
    made: list[Any] = []
    alive: list[int] = []

    def make(parameters: Any) -> Any:
        made.append(case.ours(parameters))
        made[-1].register_step_pre_hook(
            lambda *_: alive.append(sum(p.grad is not None for p in released.parameters()))
        )
        return made[-1]

    release_gradients(released, make)
    for _ in range(4):
        x = torch.randn(2, 4)
        usual(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        released(x).square().mean().backward()
        assert all(p.grad is None for p in released.parameters())
        for p, q in zip(released.parameters(), usual.parameters(), strict=True):
            assert same_bits(p, q)
    assert alive == [1] * 4 * len(made)
    assert len(made) == 5, "the frozen parameter has no optimizer"
    ours_by_parameter = {id(o.param_groups[0]["params"][0]): o for o in made}
    for p, q in zip(released.parameters(), usual.parameters(), strict=True):
        if p.requires_grad:
            alone = case.torchs([q])
            alone.state[q] = optimizer.state[q]
            assert_equal_state(ours_by_parameter[id(p)], alone)


def test_the_command_compares_and_records(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new"
    sizes = ["--width", "8", "--layers", "2", "--optimizers", "rmsprop", "--out", str(out)]
    assert main(sizes) == 0
    usual, released = read_json(out / "gradient_release.json")["runs"]
    assert usual["digest"] == released["digest"]
    assert usual["parameters"] == 2 * (8 * 8 + 8)
    assert "RMSProp, 0.0 M parameters" in capsys.readouterr().out


def test_parameters_that_differ_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fake(optimizer: str, released: bool, **_: Any) -> dict[str, Any]:
        sizes = dict.fromkeys(("parameters", "parameter_bytes", "peak_extra_bytes"), 1)
        return {"optimizer": optimizer, "digest": str(released), **sizes}

    monkeypatch.setattr(gradient_release, "_apart", fake)
    assert main(["--out", str(tmp_path / "new")]) == 1
    assert "gradient release went wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--width", "0"], "'0' is not a whole number from 1 up"), (["--out", "."], "is not empty")],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert complaint in capsys.readouterr().err


def test_the_recorded_peak_is_a_fraction_of_the_usual_and_the_parameters_are_equal() -> None:
    runs = read_json(RECORDED)["runs"]
    assert len(runs) == 4
    for usual, released in zip(runs[::2], runs[1::2], strict=True):
        assert usual["digest"] == released["digest"]
        # A parameter's gradient is a sixteenth of all; the rest are temporaries of a step.
        assert released["peak_extra_bytes"] < 0.15 * usual["peak_extra_bytes"]
        assert usual["peak_extra_bytes"] > 0.99 * usual["parameter_bytes"]
