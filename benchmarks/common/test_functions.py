"""Test functions of one or two coordinates; gradients come from autograd.

A new one is an entry of `TEST_FUNCTIONS`: title, formula, function, domain, start, minima.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRID_POINTS = 20_001  # at which a function of one variable is searched for stationary points


@dataclass(frozen=True)
class Objective:
    """A function of one or two coordinates, elementwise in tensors of them."""

    title: str
    formula: str  # in TeX
    function: Callable[..., Tensor]  # of as many tensors as there are coordinates
    domain: tuple[tuple[float, float], ...]  # for each coordinate
    start: tuple[float, ...]
    minima: tuple[tuple[float, ...], ...] = ()  # the global ones, if there are any
    target: float | None = None  # without a minimum: a value that counts as progress

    def value(self, points: Tensor) -> Tensor:
        """The function's values at points whose coordinates lie along the last dimension."""
        return self.function(*points.unbind(-1))

    def gradient(self, points: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.value(points).sum(), points)
        return gradient

    def contains(self, points: Tensor) -> Tensor:
        """Which points lie in the domain; NaN does not."""
        low, high = torch.tensor(self.domain, dtype=points.dtype).unbind(-1)
        return ((points >= low) & (points <= high)).all(-1)


def stationary_points(objective: Objective) -> tuple[list[float], list[float]]:
    """The minima and the maxima inside the domain of a function of one variable, by bisection."""
    ((low, high),) = objective.domain
    grid = torch.linspace(low, high, GRID_POINTS, dtype=torch.float64)
    rises = objective.gradient(grid[:, None])[:, 0] > 0
    left = (rises[1:] != rises[:-1]).nonzero()[:, 0]
    a, b, rises_at_a = grid[left], grid[left + 1], rises[left]
    for _ in range(60):  # halvings: more than float64 can resolve
        middle = (a + b) / 2
        before = (objective.gradient(middle[:, None])[:, 0] > 0) == rises_at_a
        a, b = torch.where(before, middle, a), torch.where(before, b, middle)
    return a[~rises_at_a].tolist(), a[rises_at_a].tolist()


def _wavy(x: Tensor) -> Tensor:
    return x * torch.cos(math.pi * x)


def _beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _rastrigin(x: Tensor, y: Tensor) -> Tensor:
    waves = torch.cos(2 * math.pi * x) + torch.cos(2 * math.pi * y)
    return 20 + x**2 + y**2 - 10 * waves


TEST_FUNCTIONS: dict[str, Objective] = {
    "wavy": Objective(
        "Two minima", r"x\,\cos(\pi x)", _wavy,
        ((-1, 2),), (-0.9,), ((1.090408221946721,),),
    ),
    "wavy_sample": Objective(
        "Two minima, empirical risk", r"x\,\cos(\pi x) + 0.2\,\cos(5\pi x)",
        lambda x: _wavy(x) + 0.2 * torch.cos(5 * math.pi * x),
        ((-1, 2),), (-0.7,), ((1.0169834031079086,),),
    ),
    "tanh": Objective("Saturation", r"\tanh x", torch.tanh, ((-2, 5),), (4.0,), target=0.0),
    "cubic": Objective("Inflection", "x^3", lambda x: x**3, ((-1.5, 1.5),), (1.0,), target=-1.0),
    "saddle": Objective(
        "Saddle", "x^2 - y^2", lambda x, y: x**2 - y**2,
        ((-1.5, 1.5), (-1.5, 1.5)), (1.0, 1e-3), target=-1.0,
    ),
    "monkey": Objective(
        "Monkey saddle", "x^3 - 3xy^2", lambda x, y: x**3 - 3 * x * y**2,
        ((-1.5, 1.5), (-1.5, 1.5)), (1.0, 1e-3), target=-1.0,
    ),
    "rosenbrock": Objective(
        "Rosenbrock", "(1 - x)^2 + 100\\,(y - x^2)^2",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        ((-2, 2), (-1, 3)), (-1.5, 2.0), ((1.0, 1.0),),
    ),
    "beale": Objective(
        "Beale", r"(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2",
        _beale, ((-4.5, 4.5), (-4.5, 4.5)), (-2.0, -1.5), ((3.0, 0.5),),
    ),
    "rastrigin": Objective(
        "Rastrigin", r"20 + x^2 + y^2 - 10\cos 2\pi x - 10\cos 2\pi y",
        _rastrigin, ((-5.12, 5.12), (-5.12, 5.12)), (-3.3, 2.4), ((0.0, 0.0),),
    ),
}  # fmt: skip
