"""Pitfalls: formulas and habits that seem equivalent and are not."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.challenges.experiment import (
    Finding,
    OnProgress,
    Results,
    Setup,
    log_spaced,
    rounded,
)
from benchmarks.challenges.optimizers import CORRECTED, OPTIMIZERS, UNCORRECTED, titles
from benchmarks.challenges.training import mean_losses, train
from benchmarks.challenges.trajectories import first_step, minimize, perturbed
from benchmarks.common.optimizers import MakeOptimizer
from benchmarks.common.test_functions import TEST_FUNCTIONS
from benchmarks.common.training import LossFunction
from benchmarks.common.variants import AVERAGING, EPS_INSIDE, LR_IN_VELOCITY, VARIANTS

GRADIENTS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EPS = 1e-6  # of D2L's textbook, which puts it inside the root
STEPS = 100
DEEP_NET: dict[str, Any] = {"name": "sigmoid", "depth": 5, "width": 128}
DIVIDED_NET: dict[str, Any] = {"name": "relu", "depth": 2, "width": 128}
BATCH = 128
CLIPPED_AT = 1.0
ROSENBROCK_STEPS = 500
# Pairs that differ in bias correction alone.
CORRECTIONS = {"rmsprop": CORRECTED, UNCORRECTED: "adam"}
SADDLE_START, SADDLE_STEPS = (1.0, 1e-8), 2000

INSIDE: dict[str, MakeOptimizer] = {
    name: VARIANTS[EPS_INSIDE][name] for name in ("adagrad", "rmsprop")
}
MOMENTUM_FORMULAS: dict[str, MakeOptimizer] = {
    "v ← μv + g": OPTIMIZERS["momentum"].scratch,
    "v ← μv + (1 − μ)g": VARIANTS[AVERAGING]["momentum"],
    "v ← μv + γg": VARIANTS[LR_IN_VELOCITY]["momentum"],
}


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    on_progress("ε and the root", 0.0)
    results: Results = {"eps": _constant_gradients(), "eps_deep_net": _deep_net(setup)}
    on_progress("bias correction", 0.4)
    results["bias_correction"] = _bias_correction(setup)
    on_progress("momentum formulas", 0.5)
    results["momentum_formulas"] = _momentum_formulas()
    on_progress("a loss divided twice", 0.5)
    results["divided_twice"] = _divided_twice(setup)
    on_progress("clipping on Rosenbrock", 0.8)
    results["clipping"] = _clipping(setup)
    return results


def _constant_gradients() -> Results:
    """How far constant gradients move a parameter, in units of the learning rate."""
    results: Results = {"eps": EPS, "steps": STEPS, "gradients": GRADIENTS, "distance": {}}
    for name, inside in INSIDE.items():
        results["distance"][name] = {
            "outside": _distances(partial(OPTIMIZERS[name].scratch, eps=EPS))[-1],
            "inside": _distances(partial(inside, eps=EPS))[-1],
        }
    return results


def _distances(make: MakeOptimizer, gradients: tuple[float, ...] = GRADIENTS) -> list[list[float]]:
    """The distance from the start for each gradient, after each step."""
    p = torch.nn.Parameter(torch.zeros(len(gradients), dtype=torch.float64))
    optimizer = make([p], lr=1.0)
    distances = []
    for _ in range(STEPS):
        p.grad = torch.tensor(gradients, dtype=torch.float64)
        optimizer.step()
        distances.append(p.detach().abs().tolist())
    return distances


def _deep_net(setup: Setup) -> Results:
    """The deep sigmoid net, whose first layers have such small gradients."""
    results: Results = {"eps": EPS, "net": DEEP_NET, "lr": {}, "loss": {}}
    for name, inside in INSIDE.items():
        optimizer = OPTIMIZERS[name]
        results["lr"][name] = optimizer.lr
        results["loss"][name] = {
            placement: _losses(setup, DEEP_NET, partial(make, eps=EPS), optimizer.lr)
            for placement, make in (("outside", optimizer.scratch), ("inside", inside))
        }
    return results


def _losses(
    setup: Setup,
    net_options: dict[str, Any],
    make: MakeOptimizer,
    lr: float,
    loss_function: LossFunction = cross_entropy,
) -> dict[str, list[float]]:
    digits, sizes = setup.require_digits(), setup.sizes
    net = setup.build_net(**net_options, seed=setup.seed)
    result = train(
        net, make(net.parameters(), lr=lr),
        digits.train_images[: sizes.images], digits.train_labels[: sizes.images],
        batch_size=BATCH, steps=sizes.epochs * math.ceil(sizes.images / BATCH), seed=setup.seed,
        loss_function=loss_function,
    )  # fmt: skip
    return mean_losses(result.losses)


def _bias_correction(setup: Setup) -> Results:
    """RMSProp and Adam, each with and without bias correction: step sizes, and x² − y²."""
    rates = log_spaced(-3, 1, setup.sizes.rates)
    results: Results = {
        "rates": rates, "start": SADDLE_START, "step_size": {}, "escape_steps": {},
    }  # fmt: skip
    for name in (name for pair in CORRECTIONS.items() for name in pair):
        make = OPTIMIZERS[name].make_scratch
        distances = torch.tensor(_distances(make, (1.0,)))[:, 0]
        results["step_size"][name] = rounded(distances.diff(prepend=torch.zeros(1)))
        positions = minimize(TEST_FUNCTIONS["saddle"], make, rates, [SADDLE_START], SADDLE_STEPS)
        results["escape_steps"][name] = rounded(first_step(positions[..., 0, 1].abs() >= 1))
    return results


def _momentum_formulas() -> Results:
    """Three formulas on Rosenbrock's function; half-way the learning rate falls to a tenth."""
    lr, falls_at, steps = 5e-4, 40, 80
    results: Results = {"lr": lr, "falls_at": falls_at, "steps": steps, "value": {}}
    objective = TEST_FUNCTIONS["rosenbrock"]
    for name, make in MOMENTUM_FORMULAS.items():
        positions = minimize(
            objective, partial(make, momentum=0.9), [lr], [objective.start], steps,
            schedule=lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, falls_at, 0.1),
        )  # fmt: skip
        results["value"][name] = rounded(objective.value(positions)[:, 0, 0])
    return results


def _divided_gradient(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, whose gradient alone is divided, so that the losses can be compared."""
    loss = cross_entropy(scores, labels)
    loss.register_hook(lambda gradient: gradient / BATCH)
    return loss


def _divided_twice(setup: Setup) -> Results:
    """Cross-entropy is a mean already; to divide by the batch size again is a bug."""
    results: Results = {"batch_size": BATCH, "net": DIVIDED_NET, "loss": {}}
    for name in setup.optimizers:
        optimizer = OPTIMIZERS[name]
        results["loss"][name] = {
            kind: _losses(setup, DIVIDED_NET, optimizer.make_scratch, optimizer.lr, loss_function)
            for kind, loss_function in (("correct", cross_entropy), ("divided", _divided_gradient))
        }
    return results


def _clipping(setup: Setup) -> Results:
    """Rosenbrock's function without and with clipping, each at the best of the same rates.

    Starts that differ by rounding errors show which results are chaotic; the best rate is the one
    whose worst start ends lowest.
    """
    objective, rates = TEST_FUNCTIONS["rosenbrock"], log_spaced(-5, 1, setup.sizes.rates)
    results: Results = {"clipped_at": CLIPPED_AT, "steps": ROSENBROCK_STEPS, "rates": rates}
    for kind, transform in (("free", None), ("clipped", clip)):
        by_name: Results = {}
        for name in setup.optimizers:
            positions = minimize(
                objective, OPTIMIZERS[name].make_scratch, rates, perturbed(objective.start),
                ROSENBROCK_STEPS, transform=transform,
            )  # fmt: skip
            values = objective.value(positions[-1]).nan_to_num(math.inf)
            best = int(values.amax(1).argmin())
            by_name[name] = {
                "lr": rates[best],
                "low": values[best].amin().item(),
                "high": values[best].amax().item(),
            }
        results[kind] = by_name
        results[f"{kind}_ranking"] = sorted(by_name, key=lambda name: by_name[name]["high"])
    return results


def clip(gradients: Tensor) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_, for each trajectory by itself."""
    norms = gradients.norm(dim=-1, keepdim=True)
    factors: Tensor = (CLIPPED_AT / norms).clamp(max=1)
    return gradients * factors


def findings(results: Results) -> list[Finding]:
    claims = []
    for name, distance in results["eps"]["distance"].items():
        ratios = [
            outside / inside
            for outside, inside in zip(distance["outside"], distance["inside"], strict=True)
        ]
        worst = max(range(len(ratios)), key=ratios.__getitem__)
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title}: ε inside the root equals ε outside",
                f"ε = {EPS:g}: outside moves {ratios[0]:.2f} times as far at gradients of "
                f"{GRADIENTS[0]:g}, {ratios[worst]:.0f} times at {GRADIENTS[worst]:.0e}",
                max(ratios) < 1.1,
            )
        )
        loss = results["eps_deep_net"]["loss"][name]
        outside, inside = (loss[placement]["loss"][-1] for placement in ("outside", "inside"))
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title}: on the deep sigmoid net, too",
                f"training loss at the end {outside:.3f} outside, {inside:.3f} inside",
                abs(outside - inside) < 0.1,
            )
        )
    return [
        *claims,
        *_findings_of_bias_correction(results["bias_correction"]),
        _finding_of_momentum(results["momentum_formulas"]),
        *_findings_of_division(results["divided_twice"]["loss"]),
        _finding_of_clipping(results["clipping"]),
    ]


def _findings_of_bias_correction(results: Results) -> list[Finding]:
    rate = min(results["rates"], key=lambda lr: abs(math.log(lr / 0.01)))
    index = results["rates"].index(rate)
    steps = {name: row[index] for name, row in results["escape_steps"].items()}
    first = results["step_size"]["rmsprop"][0]
    return [
        Finding(
            "RMSProp's first step is γ / √(1 − α) = 10 γ",
            f"{first:.3f} γ; bias-corrected {results['step_size'][CORRECTED][0]:.3f} γ",
            math.isclose(first, 10, rel_tol=1e-3),
            theory=True,
        ),
        Finding(
            "at the same learning rate RMSProp leaves x² − y² sooner than Adam",
            f"γ = {rate:g}: " + ", ".join(
                f"{OPTIMIZERS[name].title} {count:.0f}" for name, count in steps.items()
            )
            + " steps",
            None,
        ),
    ]  # fmt: skip


def _finding_of_momentum(results: Results) -> Finding:
    (torchs, averaged, sutskevers), falls_at = results["value"].values(), results["falls_at"]
    same = all(
        math.isclose(a, b, rel_tol=1e-3)
        for a, b in zip(torchs[: falls_at + 1], sutskevers[: falls_at + 1], strict=True)
    )
    return Finding(
        "momentum with γ in the velocity is torch's, until the learning rate changes",
        f"values just before {torchs[falls_at]:.3g} and {sutskevers[falls_at]:.3g}, "
        f"at the end {torchs[-1]:.3g} and {sutskevers[-1]:.3g}; as a running mean "
        f"{averaged[-1]:.3g}",
        same and not math.isclose(torchs[-1], sutskevers[-1], rel_tol=1e-3),
        theory=True,
    )


def _findings_of_division(loss: Results) -> list[Finding]:
    claims = []
    for name, by_kind in loss.items():
        correct, divided = (by_kind[kind]["loss"][-1] for kind in ("correct", "divided"))
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title} reveals a loss divided twice by the batch size",
                f"training loss at the end {correct:.3g}, divided {divided:.3g}",
                divided > max(2 * correct, correct + 0.1),
            )
        )
    return claims


def _finding_of_clipping(results: Results) -> Finding:
    free, clipped = results["free_ranking"], results["clipped_ranking"]
    return Finding(
        f"clipping at {results['clipped_at']:g} does not change the ranking on Rosenbrock",
        f"best first: {titles(free)}; clipped: {titles(clipped)}",
        free == clipped,
    )
