"""An ill-conditioned quadratic: what momentum gains, and the largest stable learning rate.

f(x, y) = ½(μx² + Ly²) with condition number κ = L/μ; here μ = 1. Gradient descent at its best
learning rate 2/(L + μ) shrinks the error by (κ − 1)/(κ + 1) a step, momentum at its best by
(√κ − 1)/(√κ + 1) (Polyak 1964).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.challenges.experiment import Finding, OnProgress, Results, Setup, rounded
from benchmarks.challenges.trajectories import first_step, minimize
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.test_functions import Objective

PATH_CONDITION, PATH_STEPS = 25, 60
START = (1.0, 1.0)
STEPS_PER_ROOT = 100  # the rate of momentum is measured over so many times √κ steps
BETA_OFFSETS = tuple(k / 10 for k in range(-15, 22))  # of ln(1 − β), from its best value
TOLERANCE = 1e-10  # of the error
MOST = 4  # times as many steps as the best β needs in theory
LIMIT_BETAS = (0.0, 0.3, 0.6, 0.9)
LIMIT_STEPS, WINDOW, WIDEST = 500, 100, 4.0


@dataclass(frozen=True)
class Tuning:
    """The learning rate and β that are best in theory, and the rate of convergence there."""

    lr: float
    beta: float
    rate: float


def gradient_descent(condition: float) -> Tuning:
    return Tuning(2 / (condition + 1), 0.0, (condition - 1) / (condition + 1))


def heavy_ball(condition: float) -> Tuning:
    root = math.sqrt(condition)
    rate = (root - 1) / (root + 1)
    return Tuning(4 / (root + 1) ** 2, rate**2, rate)


PARABOLA = Objective(
    "Parabola", r"\frac{1}{2}x^2", lambda x: x**2 / 2, ((-2, 2),), (1.0,), ((0.0,),)
)
TUNINGS = {"sgd": gradient_descent, "momentum": heavy_ball}


def quadratic(condition: float) -> Objective:
    return Objective(
        "Quadratic", r"\frac{1}{2}(x^2 + \kappa y^2)",
        lambda x, y: (x**2 + condition * y**2) / 2,
        ((-0.6, 1.3), (-2.4, 2.4)), START, ((0.0, 0.0),),
    )  # fmt: skip


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    sizes = setup.sizes
    results: Results = {"path_condition": PATH_CONDITION, "paths": {}, "rates": {}, "betas": {}}
    for name, tuning in TUNINGS.items():
        best = tuning(PATH_CONDITION)
        objective = quadratic(PATH_CONDITION)
        positions = _minimize(objective, [best.lr], [best.beta], PATH_STEPS)[:, 0]
        results["paths"][name] = {
            "tuning": vars(best),
            "path": [rounded(point) for point in positions],
            "distance": rounded(positions.norm(dim=-1)),
        }
    for number, condition in enumerate(sizes.conditions):
        on_progress(f"κ = {condition}", 0.4 * number / len(sizes.conditions))
        results["rates"][str(condition)] = {
            name: {
                "theory": tuning(condition).rate,
                "measured": _rate(condition, tuning(condition)),
            }
            for name, tuning in TUNINGS.items()
        }
    for number, condition in enumerate(sizes.beta_conditions):
        on_progress(f"β at κ = {condition}", 0.4 + 0.4 * number / len(sizes.beta_conditions))
        results["betas"][str(condition)] = _betas(condition)
    on_progress("stability limit", 0.8)
    results["limits"] = _limits(sizes.halvings)
    results["limit_resolution"] = WIDEST / 2**sizes.halvings
    return results


def _minimize(objective: Objective, rates: list[float], betas: list[float], steps: int) -> Tensor:
    """The positions, step × pair of learning rate and β × coordinate; β = 0 is gradient descent."""
    options = [{"momentum": beta} for beta in betas]
    make = OPTIMIZERS["momentum"].scratch
    return minimize(objective, make, rates, [objective.start], steps, options=options)[:, :, 0]


def _rate(condition: float, tuning: Tuning) -> float:
    """The factor by which a step shrinks the error: the geometric mean over the second half.

    At the best β both modes of momentum have a double root: the error falls as t times the rate to
    the power of t. That t doubles in the second half, which is divided out.
    """
    steps = 2 * math.ceil(STEPS_PER_ROOT * math.sqrt(condition) / 2)
    positions = _minimize(quadratic(condition), [tuning.lr], [tuning.beta], steps)
    error = positions[:, 0].norm(dim=-1)
    growth = 2.0 if tuning.beta else 1.0
    return float((error[-1] / error[steps // 2] / growth) ** (2 / steps))


def _betas(condition: int) -> Results:
    """Steps to a small error by β, each at its best learning rate, 2(1 + β)/(L + μ)."""
    best = heavy_ball(condition)
    exact = [1 - (1 - best.beta) * math.exp(offset) for offset in BETA_OFFSETS]
    betas = [beta for beta in exact if beta >= 0]
    rates = [2 * (1 + beta) / (condition + 1) for beta in betas]
    most = round(MOST * math.log(TOLERANCE) / math.log(best.rate))
    positions = _minimize(quadratic(condition), rates, betas, most)
    error = positions.norm(dim=-1) / positions[0].norm(dim=-1)
    # One more than the last step at which the error was still too large.
    steps = most + 1 - first_step((error > TOLERANCE).flip(0))
    reached = torch.where(steps <= most, steps, torch.nan)
    theory = [
        math.log(TOLERANCE) / math.log(_radius(condition, lr, beta))
        for lr, beta in zip(rates, betas, strict=True)
    ]
    return {
        "best_in_theory": best.beta,
        "most": most,
        "best_measured": betas[int(reached.nan_to_num(math.inf).argmin())],
        "beta": betas,
        "steps": reached.tolist(),
        "steps_in_theory": theory,
    }


def _radius(condition: float, lr: float, beta: float) -> float:
    """The largest modulus of a root of z² − (1 + β − γλ) z + β over the eigenvalues λ = 1 and κ."""

    def modulus(eigenvalue: float) -> float:
        half = (1 + beta - lr * eigenvalue) / 2
        discriminant = half**2 - beta
        return math.sqrt(beta) if discriminant <= 0 else abs(half) + math.sqrt(discriminant)

    return max(modulus(1.0), modulus(condition))


def _limits(halvings: int) -> Results:
    """The largest learning rate, times L, at which momentum does not diverge, by bisection."""
    low = torch.zeros(len(LIMIT_BETAS), dtype=torch.float64)
    high = torch.full_like(low, WIDEST)
    for _ in range(halvings):
        middle = (low + high) / 2
        diverges = _diverges(middle)
        low, high = torch.where(diverges, low, middle), torch.where(diverges, middle, high)
    return {
        f"{beta:g}": {"theory": 2 * (1 + beta), "measured": limit}
        for beta, limit in zip(LIMIT_BETAS, ((low + high) / 2).tolist(), strict=True)
    }


def _diverges(rates: Tensor) -> Tensor:
    """Whether |θ| on ½θ² grows from one window of steps to the next, at each β's learning rate."""
    positions = _minimize(PARABOLA, rates.tolist(), list(LIMIT_BETAS), LIMIT_STEPS)
    before, after = positions[-2 * WINDOW :].abs().amax(-1).split(WINDOW)
    grows: Tensor = (after.amax(0) > before.amax(0)) | ~after.isfinite().all(0)
    return grows


def findings(results: Results) -> list[Finding]:
    claims = []
    for name, formula in (
        ("sgd", "gradient descent shrinks the error by (κ − 1)/(κ + 1) a step"),
        ("momentum", "momentum shrinks the error by (√κ − 1)/(√κ + 1) a step"),
    ):
        rates = {condition: row[name] for condition, row in results["rates"].items()}
        # Relative to 1 − rate, which says how many steps a digit costs.
        worst = max(abs(r["measured"] - r["theory"]) / (1 - r["theory"]) for r in rates.values())
        condition, rate = list(rates.items())[-1]
        claims.append(
            Finding(
                formula,
                f"κ = {condition}: {rate['measured']:.6f} against {rate['theory']:.6f}; for all κ, "
                f"1 − rate is off by at most {worst:.1e} of itself",
                worst < 1e-3,
                theory=True,
            )
        )
    for condition, row in results["betas"].items():
        best, measured = row["best_in_theory"], row["best_measured"]
        claims.append(
            Finding(
                f"the best β at κ = {condition} is ((√κ − 1)/(√κ + 1))²",
                f"fewest steps to {TOLERANCE:g} of the error at β = {measured:.4f}, theory "
                f"{best:.4f}",
                abs(measured - best) < 0.1 * (1 - best),
                theory=True,
            )
        )
    limits, resolution = results["limits"], results["limit_resolution"]
    digits = math.floor(-math.log10(resolution))
    off = max(abs(limit["measured"] - limit["theory"]) for limit in limits.values())
    claims.append(
        Finding(
            "momentum is stable up to a learning rate of 2(1 + β)/L, gradient descent up to 2/L",
            ", ".join(
                f"β = {beta}: {row['measured']:.{digits}f}/L" for beta, row in limits.items()
            ),
            off < resolution,
            theory=True,
        )
    )
    return claims
