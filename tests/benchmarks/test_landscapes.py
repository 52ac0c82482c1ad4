"""The landscapes: their minima, gradients and domains are what they say."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.common.landscapes import LANDSCAPES, Landscape, turning_points

NAMES = list(LANDSCAPES)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_lies_in_the_domain(name: str) -> None:
    landscape = LANDSCAPES[name]
    assert len(landscape.start) == len(landscape.domain)
    assert landscape.holds(tensor(*landscape.start))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_small_differences(name: str) -> None:
    landscape, h = LANDSCAPES[name], 1e-6
    start = tensor(*landscape.start)
    for k, slope in enumerate(landscape.gradient(start).tolist()):
        side = torch.zeros_like(start)
        side[k] = h
        difference = (landscape.at(start + side) - landscape.at(start - side)).item() / (2 * h)
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if LANDSCAPES[name].minima])
def test_nothing_in_the_domain_is_lower_than_a_minimum(name: str) -> None:
    landscape = LANDSCAPES[name]
    axes = [torch.linspace(low, high, 201, dtype=torch.float64) for low, high in landscape.domain]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    for minimum in landscape.minima:
        point = tensor(*minimum)
        assert landscape.at(point) <= landscape.at(grid).min() + 1e-12
        assert landscape.gradient(point).abs().max() < 1e-9


def test_the_turning_points_of_the_wavy_function_solve_its_equation() -> None:
    minima, maxima = turning_points(LANDSCAPES["wavy"])
    assert [round(x, 6) for x in minima] == [-0.273853, 1.090408]
    assert [round(x, 6) for x in maxima] == [0.273853]
    for x in (*minima, *maxima):
        assert math.pi * x * math.tan(math.pi * x) == pytest.approx(1, abs=1e-9)


def test_what_is_not_a_number_is_outside() -> None:
    saddle = LANDSCAPES["saddle"]
    points = torch.tensor([[0, 0], [0, 9], [math.nan, 0], [math.inf, 0]])
    assert saddle.holds(points).tolist() == [True, False, False, False]


def test_a_new_landscape_is_three_lines() -> None:
    bowl = Landscape(
        "Bowl", "x^2 + y^2", lambda x, y: x**2 + y**2,
        ((-1, 1), (-1, 1)), (1.0, 1.0), ((0.0, 0.0),),
    )  # fmt: skip
    assert bowl.gradient(tensor(3, 4)).tolist() == [6, 8]
