"""Vanishing gradients: how they vanish with depth, and what brings a deep sigmoid net to learn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.challenges.lessons import curve_of, learn
from benchmarks.challenges.setup import Facts, Finding, OnProgress, Setup
from benchmarks.challenges.walks import first_step, rounded, walk
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.nets import INITIALISATIONS, WIRINGS, build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.training import evaluate

ACTIVATIONS = ("sigmoid", "tanh", "relu")
FACTOR = (
    math.sqrt(1 / 3) / 4
)  # per layer, in theory: torch's weights × the sigmoid's steepest slope
TANH_RATE = 0.1
TANH_STEPS, TANH_STEPS_OF_SGD = 500, 4000  # at most
BATCH = 128  # images whose gradient is looked at
# What is changed in the deep sigmoid net that SGD does not train.
RESCUES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "Adam": {"optimizer": "adam"},
    "Adam, ε = 1e-16": {"optimizer": "adam", "eps": 1e-16},
    "Xavier initialisation": {"initialisation": "chosen"},
    "batch normalisation": {"wiring": "batch_norm"},
    "residual connections": {"wiring": "residual"},
    "ReLU": {"name": "relu"},
    "ReLU, He initialisation": {"name": "relu", "initialisation": "chosen"},
}
RESCUE_DEPTHS, RESCUE_WIDTH = (5, 20), 64
RESCUE_RATES = {"sgd": (0.01, 0.1, 1.0), "adam": (1e-4, 1e-3, 1e-2)}  # three each: equal budgets
CHANCE = 0.2  # an accuracy below this is no better than guessing, or hardly
SCALES = tuple(10.0**-k for k in range(0, 17, 2))  # what the loss is multiplied by
SCALE_STEPS = 100
EPS = 1e-8  # of Adam and RMSProp, unless told otherwise


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    on_progress("tanh", 0.0)
    facts: Facts = {"tanh": _tanh(setup), "scale": _scale(setup)}
    facts["gradients"] = _gradients(setup, lambda text, x: on_progress(text, 0.1 + 0.4 * x))
    facts["adam_in_depth"] = _adam_in_depth(setup)
    facts["rescues"] = _rescues(setup, lambda text, x: on_progress(text, 0.5 + 0.5 * x))
    return facts


def _tanh(setup: Setup) -> Facts:
    """Down tanh from x = 4, where it is nearly level."""
    found: Facts = {"lr": TANH_RATE, "start": 4.0, "by_optimizer": {}}
    # dx/dt = −γ / cosh² x, integrated from x to 0.
    found["sgd_in_theory"] = (math.sinh(2 * 4.0) / 4 + 4.0 / 2) / TANH_RATE
    for name in setup.optimizers:
        steps = TANH_STEPS_OF_SGD if name == "sgd" else TANH_STEPS
        x = walk(LANDSCAPES["tanh"], OPTIMIZERS[name].make_scratch, [TANH_RATE], [(4.0,)], steps)[
            :, 0, 0, 0
        ]
        found["by_optimizer"][name] = {
            "steps_to_0": first_step(x <= 0).item(),
            "x_after_100": x[100].item(),
            "x": rounded(x[:101]),
        }
    return found


def _scale(setup: Setup) -> Facts:
    """How far a walk down s·tanh gets from x = 4, for smaller and smaller s."""
    found: Facts = {"scales": SCALES, "steps": SCALE_STEPS, "lr": TANH_RATE, "moved": {}}
    found["gradient_at_start"] = 1 - math.tanh(4.0) ** 2
    for name in setup.optimizers:
        moved = []
        for scale in SCALES:
            x = walk(
                LANDSCAPES["tanh"], OPTIMIZERS[name].make_scratch, [TANH_RATE], [(4.0,)],
                SCALE_STEPS, bend=partial(torch.mul, torch.tensor(scale)),
            )  # fmt: skip
            moved.append((x[0] - x[-1]).item())
        found["moved"][name] = moved
    return found


def _gradients(setup: Setup, on_progress: OnProgress) -> Facts:
    """Norms of the weights' gradients, by layer, before any training."""
    digits, sizes = setup.the_digits(), setup.sizes
    images, labels = digits.train_images[:BATCH], digits.train_labels[:BATCH]
    found: Facts = {"depths": sizes.depths, "width": sizes.width, "images": BATCH,
                    "seeds": sizes.seeds, "factor_in_theory": FACTOR, "nets": {}}  # fmt: skip
    kinds = [(a, i, w) for a in ACTIVATIONS for i in INITIALISATIONS for w in WIRINGS]
    for number, (activation, initialisation, wiring) in enumerate(kinds):
        on_progress(f"{activation}, {initialisation}, {wiring}", number / len(kinds))
        by_depth = {}
        for depth in sizes.depths:
            norms = [
                _layer_norms(
                    build_net(activation, depth, sizes.width, seed, initialisation, wiring),
                    images, labels,
                )
                for seed in range(setup.seed, setup.seed + sizes.seeds)
            ]  # fmt: skip
            factors = [_factor(row) for row in norms]
            by_depth[str(depth)] = {
                "norms": rounded(torch.tensor(norms).log().mean(0).exp()),
                "factor": statistics.fmean(factors),
                "factors": factors,
            }
        found["nets"].setdefault(activation, {}).setdefault(initialisation, {})[wiring] = by_depth
    return found


def _layer_norms(net: torch.nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    net.train()
    weights = [*weights_by_layer(net).values()]
    gradients = torch.autograd.grad(cross_entropy(net(images), labels), weights)
    # In float64: the squares of what is left of a gradient after 30 layers are none in float32.
    return [gradient.double().norm().item() for gradient in gradients]


def _factor(norms: Sequence[float]) -> float:
    """What a layer multiplies the gradient by: the mean over the hidden layers of equal width."""
    hidden = norms[1:-1]
    return float((hidden[0] / hidden[-1]) ** (1 / (len(hidden) - 1)))


def _adam_in_depth(setup: Setup) -> Facts:
    """Adam's first step in the deep sigmoid net: how far the weights of each layer move."""
    digits, sizes = setup.the_digits(), setup.sizes
    lr = OPTIMIZERS["adam"].lr
    found: Facts = {"lr": lr, "eps": EPS, "by_depth": {}}
    for depth in sizes.depths:
        net = build_net("sigmoid", depth, sizes.width, setup.seed)
        layers = [*weights_by_layer(net).values()]
        before = [w.detach().clone() for w in layers]
        optimizer = OPTIMIZERS["adam"].make_scratch(net.parameters(), lr)
        learn(net, optimizer, digits.train_images[:BATCH], digits.train_labels[:BATCH],
              batch_size=BATCH, steps=1, seed=setup.seed)  # fmt: skip
        gradients = [w.grad for w in layers if w.grad is not None]
        found["by_depth"][str(depth)] = {
            # Of each layer: the typical gradient, and the typical move ÷ the learning rate.
            "gradient": [g.double().square().mean().sqrt().item() for g in gradients],
            "move": [
                ((w - old).double().square().mean().sqrt() / lr).item()
                for w, old in zip(layers, before, strict=True)
            ],
        }
    return found


def _rescues(setup: Setup, on_progress: OnProgress) -> Facts:
    digits, sizes = setup.the_digits(), setup.sizes
    images, labels = digits.train_images[: sizes.images], digits.train_labels[: sizes.images]
    steps = sizes.epochs * math.ceil(len(labels) / BATCH)
    found: Facts = {"images": len(labels), "steps": steps, "batch_size": BATCH,
                    "width": RESCUE_WIDTH, "by_depth": {}}  # fmt: skip
    jobs = [(depth, rescue) for depth in RESCUE_DEPTHS for rescue in RESCUES]
    for number, (depth, rescue) in enumerate(jobs):
        change = dict(RESCUES[rescue])
        optimizer = change.pop("optimizer", "sgd")
        make = partial(OPTIMIZERS[optimizer].scratch, **OPTIMIZERS[optimizer].options)
        if "eps" in change:
            make = partial(make, eps=change.pop("eps"))
        tries: list[Facts] = []
        for lr in RESCUE_RATES[optimizer]:
            on_progress(f"{depth} layers, {rescue}, rate {lr:g}", number / len(jobs))
            net = build_net(**{"name": "sigmoid", "seed": setup.seed, "width": RESCUE_WIDTH,
                               "depth": depth, **change})  # fmt: skip
            lesson = learn(
                net, make(net.parameters(), lr=lr), images, labels,
                batch_size=BATCH, steps=steps, seed=setup.seed,
            )  # fmt: skip
            net.eval()
            _, accuracy = evaluate(net, digits.test_images, digits.test_labels)
            tries.append({"lr": lr, "final_loss": statistics.fmean(lesson.losses[-20:]),
                          "test_accuracy": accuracy, "loss": curve_of(lesson.losses)})  # fmt: skip
        finite = [one for one in tries if math.isfinite(one["final_loss"])]
        best = min(finite, key=lambda one: one["final_loss"])
        found["by_depth"].setdefault(str(depth), {})[rescue] = {
            "optimizer": optimizer, **best,
            "accuracy_by_rate": {f"{one['lr']:g}": one["test_accuracy"] for one in tries},
        }  # fmt: skip
    return found


def findings(facts: Facts) -> list[Finding]:
    found = []
    tanh, gradients = facts["tanh"]["by_optimizer"], facts["gradients"]
    if "sgd" in tanh:
        steps, theory = tanh["sgd"]["steps_to_0"], facts["tanh"]["sgd_in_theory"]
        found.append(
            Finding(
                "SGD needs (sinh(2x)/4 + x/2) / γ steps down tanh from x = 4",
                f"{steps:.0f} against {theory:.0f}; "
                + ", ".join(
                    f"{OPTIMIZERS[name].title} {its['steps_to_0']:.0f}"
                    for name, its in tanh.items()
                    if name != "sgd"
                ),
                abs(steps - theory) < 0.01 * theory,
                theory=True,
            )
        )
    plain = gradients["nets"]["sigmoid"]["default"]["plain"]
    factors = [its["factor"] for its in plain.values()]
    found.append(
        Finding(
            "a sigmoid layer at torch's default hands on √(1/3)/4 of the gradient",
            f"{min(factors):.3f} … {max(factors):.3f} against {gradients['factor_in_theory']:.3f}",
            all(abs(factor / gradients["factor_in_theory"] - 1) < 0.1 for factor in factors),
            theory=True,
        )
    )
    deepest = str(gradients["depths"][-1])
    for claim, net in (
        ("Xavier initialisation keeps the gradient of a sigmoid net",
         ("sigmoid", "chosen", "plain")),
        ("Xavier initialisation keeps the gradient of a tanh net", ("tanh", "chosen", "plain")),
        ("ReLU alone keeps the gradient", ("relu", "default", "plain")),
        ("He initialisation keeps the gradient of a ReLU net", ("relu", "chosen", "plain")),
        ("batch normalisation keeps the gradient of a sigmoid net",
         ("sigmoid", "default", "batch_norm")),
        ("residual connections keep the gradient of a sigmoid net",
         ("sigmoid", "default", "residual")),
    ):  # fmt: skip
        activation, initialisation, wiring = net
        factor = gradients["nets"][activation][initialisation][wiring][deepest]["factor"]
        found.append(
            Finding(
                claim,
                f"{deepest} layers: × {factor:.3f} per layer",
                bool(0.9 < factor < 1.2),
            )
        )
    together = gradients["nets"]["relu"]["chosen"]["residual"][deepest]["norms"][0]
    alone = gradients["nets"]["relu"]["chosen"]["plain"][deepest]["norms"][0]
    found.append(
        Finding(
            "He initialisation and residual connections go together",
            f"{deepest} layers: the first one's gradient is {together:.1e} with both, "
            f"{alone:.1e} with He initialisation alone",
            bool(together < 10 * alone),
        )
    )
    for rescue in RESCUES:
        results = {d: by[rescue] for d, by in facts["rescues"]["by_depth"].items()}
        learns = [result["test_accuracy"] > CHANCE for result in results.values()]
        found.append(
            Finding(
                "SGD trains the deep sigmoid net"
                if rescue == "nothing"
                else f"the deep sigmoid net is rescued by: {rescue}",
                "; ".join(
                    f"{depth} layers: {result['test_accuracy']:.1%} at rate {result['lr']:g}"
                    for depth, result in results.items()
                ),
                all(learns) or (None if any(learns) else False),
            )
        )
    if "adam" in facts["scale"]["moved"]:
        scale, moved = facts["scale"], facts["scale"]["moved"]["adam"]
        first = next(s for s, m in zip(scale["scales"], moved, strict=True) if m < 0.5 * moved[0])
        found.append(
            Finding(
                "Adam does not mind the scale of the gradient",
                f"from s = {first:g} on, where the gradient of s·tanh is "
                f"{first * scale['gradient_at_start']:.1e}, it moves less than half as far",
                None,
            )
        )
    return found
