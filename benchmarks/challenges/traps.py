"""Traps: formulas and habits that look alike and are not, executed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.challenges.lessons import curve_of, learn
from benchmarks.challenges.setup import Facts, Finding, OnProgress, Setup, log_spaced, titles
from benchmarks.challenges.walks import rounded, walk
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import OPTIMIZERS, MakeOptimizer
from benchmarks.common.variants import AVERAGING, EPS_INSIDE, LR_IN_VELOCITY, VARIANTS

GRADIENTS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
EPS = 1e-6  # of the textbook that puts it inside the root (D2L); the same for both here
STEPS = 100
DEEP_NET: dict[str, Any] = {"name": "sigmoid", "depth": 5, "width": 128}
DIVIDED_NET: dict[str, Any] = {"name": "relu", "depth": 2, "width": 128}
BATCH = 128
CLIPPED_AT = 1.0
ROSENBROCK_STEPS = 500


INSIDE: dict[str, MakeOptimizer] = {
    name: VARIANTS[EPS_INSIDE][name] for name in ("adagrad", "rmsprop")
}
MOMENTA: dict[str, MakeOptimizer] = {
    "v ← μv + g": OPTIMIZERS["momentum"].scratch,
    "v ← μv + (1 − μ)g": VARIANTS[AVERAGING]["momentum"],
    "v ← μv + γg": VARIANTS[LR_IN_VELOCITY]["momentum"],
}


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    on_progress("ε and the root", 0.0)
    facts: Facts = {"eps": _constant_gradients(), "eps_deep_net": _deep_net(setup)}
    on_progress("three momenta", 0.4)
    facts["momenta"] = _momenta()
    on_progress("a loss divided twice", 0.5)
    facts["divided_twice"] = _divided_twice(setup)
    on_progress("clipping on Rosenbrock", 0.8)
    facts["clipping"] = _clipping(setup)
    return facts


def _constant_gradients() -> Facts:
    """How far constant gradients move a parameter in units of the learning rate."""
    found: Facts = {"eps": EPS, "steps": STEPS, "gradients": GRADIENTS, "moved": {}}
    for name, inside in INSIDE.items():
        found["moved"][name] = {
            place: [_moved(make, gradient) for gradient in GRADIENTS]
            for place, make in (("outside", OPTIMIZERS[name].scratch), ("inside", inside))
        }
    return found


def _moved(make: MakeOptimizer, gradient: float) -> float:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make([p], lr=1.0, eps=EPS)
    for _ in range(STEPS):
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    return abs(p.item())


def _deep_net(setup: Setup) -> Facts:
    """The deep sigmoid net, whose first layers see such small gradients."""
    found: Facts = {"eps": EPS, "net": DEEP_NET, "lr": {}, "loss": {}}
    for name, inside in INSIDE.items():
        entry = OPTIMIZERS[name]
        found["lr"][name] = entry.lr
        found["loss"][name] = {
            place: _losses(setup, DEEP_NET, partial(make, eps=EPS), entry.lr)
            for place, make in (("outside", entry.scratch), ("inside", inside))
        }
    return found


def _losses(
    setup: Setup, net: dict[str, Any], make: MakeOptimizer, lr: float, scale: float = 1.0
) -> dict[str, list[float]]:
    digits, sizes = setup.the_digits(), setup.sizes
    trained = build_net(**net, seed=setup.seed)
    lesson = learn(
        trained, make(trained.parameters(), lr=lr),
        digits.train_images[: sizes.images], digits.train_labels[: sizes.images],
        batch_size=BATCH, steps=sizes.epochs * math.ceil(sizes.images / BATCH), seed=setup.seed,
        scale=scale,
    )  # fmt: skip
    return curve_of(lesson.losses)


def _momenta() -> Facts:
    """Three formulas down one narrow valley; half-way the learning rate falls to a tenth."""
    lr, falls_at, steps = 5e-4, 40, 80
    found: Facts = {"lr": lr, "falls_at": falls_at, "steps": steps, "height": {}}
    valley = LANDSCAPES["rosenbrock"]
    for name, make in MOMENTA.items():
        positions = walk(
            valley, partial(make, momentum=0.9), [lr], [valley.start], steps,
            schedule=lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, falls_at, 0.1),
        )  # fmt: skip
        found["height"][name] = rounded(valley.at(positions)[:, 0, 0])
    return found


def _divided_twice(setup: Setup) -> Facts:
    """Cross-entropy is a mean already; dividing by the batch's size again is the bug."""
    found: Facts = {"batch_size": BATCH, "net": DIVIDED_NET, "loss": {}}
    for name in setup.optimizers:
        entry = OPTIMIZERS[name]
        found["loss"][name] = {
            kind: _losses(setup, DIVIDED_NET, entry.make_scratch, entry.lr, scale)
            for kind, scale in (("right", 1.0), ("divided", 1 / BATCH))
        }
    return found


def _clipping(setup: Setup) -> Facts:
    """Rosenbrock's valley with the gradient as it is, and clipped: the best of equal grids."""
    valley, rates = LANDSCAPES["rosenbrock"], log_spaced(-5, 1, setup.sizes.rates)
    found: Facts = {"clipped_at": CLIPPED_AT, "steps": ROSENBROCK_STEPS, "rates": len(rates)}
    for kind, bend in (("free", None), ("clipped", clip)):
        by_name: Facts = {}
        found[kind] = by_name
        for name in setup.optimizers:
            heights = valley.at(
                walk(
                    valley, OPTIMIZERS[name].make_scratch, rates, [valley.start],
                    ROSENBROCK_STEPS, bend=bend,
                )
            )[:, :, 0]  # fmt: skip
            last = torch.where(heights[-1].isfinite(), heights[-1], math.inf)
            best = int(last.argmin())
            by_name[name] = {"lr": rates[best], "height": last[best].item()}
        ranking = sorted((its["height"], name) for name, its in by_name.items())
        found[f"{kind}_ranking"] = [name for _, name in ranking]
    return found


def clip(gradients: Tensor) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_, for each walk by itself."""
    norms = gradients.norm(dim=-1, keepdim=True)
    factors: Tensor = (CLIPPED_AT / norms).clamp(max=1)
    return gradients * factors


def findings(facts: Facts) -> list[Finding]:
    found = []
    for name, moved in facts["eps"]["moved"].items():
        ratios = [
            outside / inside
            for outside, inside in zip(moved["outside"], moved["inside"], strict=True)
        ]
        worst = max(range(len(ratios)), key=ratios.__getitem__)
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title}: ε inside or outside the root is all the same",
                f"ε = {EPS:g}: outside moves {ratios[0]:.2f} times as far at gradients of "
                f"{GRADIENTS[0]:g}, {ratios[worst]:.0f} times at {GRADIENTS[worst]:.0e}",
                max(ratios) < 1.1,
            )
        )
        loss = facts["eps_deep_net"]["loss"][name]
        out, inn = (loss[place]["loss"][-1] for place in ("outside", "inside"))
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title}: nor does the deep sigmoid net mind where it is",
                f"training loss at the end {out:.3f} outside, {inn:.3f} inside",
                abs(out - inn) < 0.1,
            )
        )
    heights, falls_at = [*facts["momenta"]["height"].values()], facts["momenta"]["falls_at"]
    same = all(
        math.isclose(a, b, rel_tol=1e-3)
        for a, b in zip(heights[0][: falls_at + 1], heights[2][: falls_at + 1], strict=True)
    )
    found.append(
        Finding(
            "momentum with γ in the velocity is torch's, until the learning rate changes",
            f"heights just before {heights[0][falls_at]:.3g} and {heights[2][falls_at]:.3g}, "
            f"at the end {heights[0][-1]:.3g} and {heights[2][-1]:.3g}; "
            f"as a running mean {heights[1][-1]:.3g}",
            same and not math.isclose(heights[0][-1], heights[2][-1], rel_tol=1e-3),
            theory=True,
        )
    )
    for name, its in facts["divided_twice"]["loss"].items():
        right, divided = its["right"]["loss"][-1], its["divided"]["loss"][-1]
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title} notices a loss divided twice by the batch's size",
                f"training loss at the end {right:.3g}, divided {divided:.3g}",
                divided > max(2 * right, right + 0.1),
            )
        )
    clipping = facts["clipping"]
    found.append(
        Finding(
            "clipping at 1.0 leaves the ranking on Rosenbrock's valley as it is",
            f"best first: {titles(clipping['free_ranking'])}; clipped: "
            f"{titles(clipping['clipped_ranking'])}",
            clipping["free_ranking"] == clipping["clipped_ranking"],
        )
    )
    return found
