"""The examples of the README run, and say what is true."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, __version__, adam

from .examples import ROOT, examples

README = (ROOT / "README.md").read_text(encoding="utf-8")
(FIRST, _), (ADAM, _), (COMPARE, PRINTED), (LION, _) = examples(ROOT / "README.md")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_first_example_runs() -> None:
    scope: dict[str, Any] = {"model": nn.Linear(3, 2)}
    exec(FIRST, scope)
    assert isinstance(scope["optimizer"], ScratchAdam)
    assert scope["optimizer"].param_groups[0]["params"] == list(scope["model"].parameters())


def test_the_adam_on_show_is_the_adam_that_runs() -> None:
    def equations(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines() if "#" in line or "if " in line]
        return [line for line in lines if not line.startswith(("def", '"""'))]

    assert equations(ADAM) == equations(inspect.getsource(adam.adam))


@pytest.mark.parametrize(
    "engine", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)
def test_your_own_optimizer_works(engine: dict[str, bool]) -> None:
    scope: dict[str, Any] = {}
    exec(LION, scope)
    theta = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    lion: ScratchOptimizer = scope["Lion"]([theta], lr=0.1, weight_decay=0.5, **engine)

    expected, m = theta.detach().clone(), torch.zeros(3)
    for gradient in (torch.tensor([1.0, -1.0, 0.0]), torch.tensor([-9.0, 0.5, 2.0])):
        theta.grad = gradient
        lion.step()
        expected, m = by_the_paper(expected, gradient, m)
        # The paper's products and sums are rounded in another order.
        torch.testing.assert_close(theta.detach(), expected)
        torch.testing.assert_close(lion.state[theta]["exp_avg"], m)


def by_the_paper(theta: Tensor, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Chen et al. (2023), algorithm 2, with η = 0.1 and λ = 0.5."""
    c = 0.9 * m + (1 - 0.9) * g
    return theta - 0.1 * (c.sign() + 0.5 * theta), 0.99 * m + (1 - 0.99) * g


def test_the_comparison_finds_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    exec(COMPARE, {})
    assert capsys.readouterr().out == PRINTED


def test_your_own_optimizer_takes_about_fifteen_lines() -> None:
    body = LION[LION.index("class") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


def test_step_times_are_as_the_readme_says() -> None:
    report = pytest.importorskip("benchmarks.step_time.report", reason="needs '.[bench]'")
    recorded = json.loads((ROOT / "benchmarks/results/step_time/step_time.json").read_text())
    groups = report.groups_of(recorded)
    assert {group.optimizer for group in groups} >= {"sgd", "momentum", "rmsprop", "adam"}
    for group in groups:
        if group.optimizer != "momentum":
            most = 0.5 if group.optimizer == "rmsprop" else 1 + report.EQUAL
            assert group.ratio_of_bests() <= most, group
    sgd = [group.ratio("default", "default") for group in groups if group.optimizer == "sgd"]
    assert sum(ratio > 1 + report.EQUAL for ratio in sgd) > len(sgd) / 2


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 15
    assert all((ROOT / link).exists() for link in links)


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.startswith(f"# Changelog\n\n## {__version__}")
