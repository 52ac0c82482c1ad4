"""The test functions: their minima, gradients and domains are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.common.test_functions import TEST_FUNCTIONS, Objective, stationary_points

NAMES = list(TEST_FUNCTIONS)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_lies_in_the_domain(name: str) -> None:
    objective = TEST_FUNCTIONS[name]
    assert len(objective.start) == len(objective.domain)
    assert objective.contains(tensor(*objective.start))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_small_differences(name: str) -> None:
    objective, h = TEST_FUNCTIONS[name], 1e-6
    start = tensor(*objective.start)
    for k, slope in enumerate(objective.gradient(start).tolist()):
        side = torch.zeros_like(start)
        side[k] = h
        difference = (objective.value(start + side) - objective.value(start - side)).item() / (
            2 * h
        )
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if TEST_FUNCTIONS[name].minima])
def test_nothing_in_the_domain_is_lower_than_a_minimum(name: str) -> None:
    objective = TEST_FUNCTIONS[name]
    axes = [torch.linspace(low, high, 201, dtype=torch.float64) for low, high in objective.domain]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    for minimum in objective.minima:
        point = tensor(*minimum)
        assert objective.value(point) <= objective.value(grid).min() + 1e-12
        assert objective.gradient(point).abs().max() < 1e-9


def test_the_stationary_points_of_the_wavy_function_solve_its_equation() -> None:
    minima, maxima = stationary_points(TEST_FUNCTIONS["wavy"])
    assert [round(x, 6) for x in minima] == [-0.273853, 1.090408]
    assert [round(x, 6) for x in maxima] == [0.273853]
    for x in (*minima, *maxima):
        assert math.pi * x * math.tan(math.pi * x) == pytest.approx(1, abs=1e-9)


def test_nan_and_infinity_are_outside() -> None:
    saddle = TEST_FUNCTIONS["saddle"]
    points = torch.tensor([[0, 0], [0, 9], [math.nan, 0], [math.inf, 0]])
    assert saddle.contains(points).tolist() == [True, False, False, False]


def test_a_new_function_is_one_entry() -> None:
    bowl = Objective(
        "Bowl", "x^2 + y^2", lambda x, y: x**2 + y**2,
        ((-1, 1), (-1, 1)), (1.0, 1.0), ((0.0, 0.0),),
    )  # fmt: skip
    assert bowl.gradient(tensor(3, 4)).tolist() == [6, 8]


@pytest.mark.parametrize("name", NAMES)
def test_a_function_has_a_minimum_or_a_target(name: str) -> None:
    objective = TEST_FUNCTIONS[name]
    assert bool(objective.minima) == (objective.target is None)
    if objective.target is not None:
        assert objective.value(tensor(*objective.start)) > objective.target
