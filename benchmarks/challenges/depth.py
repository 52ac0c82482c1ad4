"""How deep Adam can go: where the gradient of a deep sigmoid net falls below ε.

At torch's default initialisation each sigmoid layer passes on √(1/3)/4 = .144 of the gradient. An
adaptive method moves a weight by γ whatever its gradient, as long as that is far above ε; below ε
the step is γ·g/ε and vanishes with the gradient. Both together predict, from the images and the
widths alone, how far the first layer of a net of any depth moves in one step.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.challenges.experiment import (
    Curve,
    Finding,
    OnProgress,
    Results,
    Setup,
    is_finite,
)
from benchmarks.challenges.optimizers import OPTIMIZERS
from benchmarks.challenges.training import mean_losses, train
from benchmarks.common.data import Digits
from benchmarks.common.nets import CLASSES, weights_by_layer
from benchmarks.common.training import evaluate

BATCH = 128
FACTOR = math.sqrt(1 / 3) / 4  # of the gradient that a layer passes on
# A scale-free first step in units of the learning rate, and ε times it is where that step halves:
# RMSProp divides by √(1 − α) |g| + ε, for it has no bias correction.
FIRST_STEP = {"adam": 1.0, "rmsprop": 10.0, "adagrad": 1.0}
DEFAULT_EPS = {"adam": 1e-8, "rmsprop": 1e-8, "adagrad": 1e-10}
EPSILONS = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14, 1e-16)
DEPTHS = tuple(range(1, 31))
SEEDS = 3
DTYPES = {"float32": torch.float32, "float64": torch.float64}
TINY_EPSILONS = (1e-8, 1e-16, 1e-24, 1e-32)  # for Adam in float32 and in float64
# Below this gradient (1 − β₂) g² underflows in float32 to 0, and g / (0 + ε) explodes.
UNDERFLOW = math.sqrt(2**-150 / (1 - 0.999))
TRAINED_DEPTHS, TRAINED_EPSILONS = (4, 6, 8, 10), (1e-4, 1e-6, 1e-8, 1e-12)
TRAINED_WIDTH, TRAINED_RATE = 64, 1e-2
CHANCE = 0.2


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    digits, width = setup.require_digits(), setup.sizes.width
    spread = _input_spread(digits)
    results: Results = {
        "width": width, "batch_size": BATCH, "factor": FACTOR, "depths": DEPTHS,
        "default_eps": DEFAULT_EPS, "epsilons": EPSILONS, "underflow": UNDERFLOW,
        "gradient_in_theory": [_scale(depth, width) * spread.square().mean().sqrt().item()
                               for depth in DEPTHS],
        "gradient": [], "steps": {}, "halving": {}, "dtypes": {},
    }  # fmt: skip
    gradients = {}
    for depth in DEPTHS:
        on_progress(f"{depth} layers", 0.4 * depth / len(DEPTHS))
        gradients[depth] = {
            dtype: [_gradient(setup, depth, seed, dtype) for seed in _seeds(setup)]
            for dtype in DTYPES
        }
        results["gradient"].append(
            _median(g[g != 0].square().mean().sqrt().item() for g in gradients[depth]["float64"])
        )
    in_float64 = [gradients[depth]["float64"] for depth in DEPTHS]
    for name, first in FIRST_STEP.items():
        by_eps = {}
        for eps in EPSILONS:
            by_eps[f"{eps:g}"] = {
                "measured": [_median(_step(name, eps, g) for g in seeds) for seeds in in_float64],
                "theory": [_predict(spread, depth, width, first * eps) for depth in DEPTHS],
            }
        results["steps"][name] = by_eps
        results["halving"][name] = {
            eps: {key: _halving(steps) for key, steps in row.items()} for eps, row in by_eps.items()
        }
    results["dtypes"] = {
        dtype: {
            f"{eps:g}": [
                _median(_step("adam", eps, g) for g in gradients[depth][dtype]) for depth in DEPTHS
            ]
            for eps in TINY_EPSILONS
        }
        for dtype in DTYPES
    }
    results["training"] = _training(setup, lambda text, x: on_progress(text, 0.4 + 0.6 * x))
    return results


def _seeds(setup: Setup) -> range:
    return range(setup.seed, setup.seed + min(SEEDS, setup.sizes.seeds))


def _median(values: Any) -> float:
    return float(f"{statistics.median(values):.5g}")


def _gradient(setup: Setup, depth: int, seed: int, dtype: str) -> Tensor:
    """The gradient of the first layer's weights at the initialisation."""
    digits = setup.require_digits()
    net = setup.build_net("sigmoid", depth, setup.sizes.width, seed).to(DTYPES[dtype])
    images = digits.train_images[:BATCH].to(DTYPES[dtype])
    loss = cross_entropy(net(images), digits.train_labels[:BATCH])
    first = next(iter(weights_by_layer(net).values()))
    (gradient,) = torch.autograd.grad(loss, [first])
    return gradient


def _step(name: str, eps: float, gradient: Tensor) -> float:
    """The first step relative to a scale-free one: root mean square over non-zero gradients."""
    p = torch.nn.Parameter(torch.zeros_like(gradient))
    optimizer = OPTIMIZERS[name].scratch([p], lr=1.0, eps=eps)
    p.grad = gradient.clone()
    optimizer.step()
    moved = p.detach()[gradient != 0].double()
    if not len(moved):
        return 0.0
    return (moved.square().mean().sqrt() / FIRST_STEP[name]).item()


def _input_spread(digits: Digits) -> Tensor:
    """For each pixel the root of Σ_c S_c², where S_c is the mean of (p_c − y_c) x over the images.

    y is 1 for the label and 0 elsewhere. The outputs of the net are nearly equal for all images:
    p_c is about 1/10, and logits of variance 1/12 make it vary by √(9/10 · 1/12)/10 around that.
    """
    images = digits.train_images[:BATCH].double().flatten(1)
    targets = torch.nn.functional.one_hot(digits.train_labels[:BATCH], CLASSES).double()
    differences = (1 / CLASSES - targets).T @ images / len(images)  # class × pixel
    logit_variance = 1 / 12
    variance = CLASSES * (1 - 1 / CLASSES) * logit_variance / CLASSES**2
    spread = (differences.square().sum(0) + variance * images.mean(0).square()).sqrt()
    return spread[spread > 0].cpu()


def _scale(depth: int, width: int) -> float:
    """The standard deviation of a first-layer gradient for a pixel of spread 1.

    The output's weights have variance 1/(3 width), each sigmoid has slope 1/4, and each further
    layer passes on FACTOR.
    """
    return FACTOR ** (depth - 1) / math.sqrt(3 * width) / 4


def _predict(spread: Tensor, depth: int, width: int, eps: float) -> float:
    """The root mean square of |g| / (|g| + ε) for normal g."""
    quantiles = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    normal = torch.special.ndtri(quantiles).abs()
    size = _scale(depth, width) * spread[:, None] * normal
    return float(f"{(size / (size + eps)).square().mean().sqrt().item():.5g}")


def _halving(steps: list[float]) -> float | None:
    """The depth at which the relative step falls below one half, between two whole depths."""
    below = next((k for k, step in enumerate(steps) if step < 0.5), None)
    if not below:
        return None
    high, low = (math.log(steps[k]) for k in (below - 1, below))
    return float(f"{DEPTHS[below - 1] + (high - math.log(0.5)) / (high - low):.4g}")


def _training(setup: Setup, on_progress: OnProgress) -> Results:
    """Whether Adam trains the net, by depth and ε."""
    sizes = setup.sizes
    spread = _input_spread(setup.require_digits())
    halving = {
        f"{eps:g}": _halving([_predict(spread, depth, TRAINED_WIDTH, eps) for depth in DEPTHS])
        for eps in TRAINED_EPSILONS
    }
    results: Results = {
        "width": TRAINED_WIDTH, "lr": TRAINED_RATE, "images": sizes.images,
        "steps": sizes.epochs * math.ceil(sizes.images / BATCH), "by_depth": {},
        "halving_in_theory": halving,
    }  # fmt: skip
    for number, depth in enumerate(TRAINED_DEPTHS):
        by_eps = results["by_depth"].setdefault(str(depth), {})
        for eps in TRAINED_EPSILONS:
            on_progress(f"{depth} layers, ε = {eps:g}", number / len(TRAINED_DEPTHS))
            by_eps[f"{eps:g}"] = [_train(setup, depth, eps, seed) for seed in _seeds(setup)]
    return results


def _train(setup: Setup, depth: int, eps: float, seed: int) -> Results:
    digits, sizes = setup.require_digits(), setup.sizes
    images, labels = digits.train_images[: sizes.images], digits.train_labels[: sizes.images]
    net = setup.build_net("sigmoid", depth, TRAINED_WIDTH, seed)
    make = partial(OPTIMIZERS["adam"].scratch, eps=eps)
    result = train(
        net, make(net.parameters(), lr=TRAINED_RATE), images, labels, batch_size=BATCH,
        steps=sizes.epochs * math.ceil(len(labels) / BATCH), seed=seed,
    )  # fmt: skip
    return {
        "test_accuracy": evaluate(net, digits.test_images, digits.test_labels)[1],
        "loss": mean_losses(result.losses),
    }


def curves(results: Results) -> list[Curve]:
    return [
        Curve(f"{depth} layers/eps {eps}", first["loss"]["step"], first["loss"]["loss"])
        for depth, by_eps in results["training"]["by_depth"].items()
        for eps, (first, *_) in by_eps.items()
    ]


def findings(results: Results) -> list[Finding]:
    gradient, depths = results["gradient"], results["depths"]
    factor = (gradient[-1] / gradient[0]) ** (1 / (depths[-1] - depths[0]))
    claims = [
        Finding(
            "a sigmoid layer at torch's default passes on √(1/3)/4 of the gradient",
            f"{factor:.4f} against {results['factor']:.4f}, the mean over {depths[-1]} depths",
            abs(factor / results["factor"] - 1) < 0.05,
            theory=True,
        )
    ]
    for name, by_eps in results["halving"].items():
        pairs = [row for row in by_eps.values() if is_finite(row["measured"])]
        worst = max(abs(row["measured"] - row["theory"]) for row in pairs)
        default = results["default_eps"][name]
        row = by_eps[f"{default:g}"]
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title}'s first step of the first layer halves at the predicted "
                "depth",
                f"ε = {default:g}: {row['measured']:.2f} layers, predicted {row['theory']:.2f}; "
                f"for all ε off by at most {worst:.2f}",
                worst < 0.4,
                theory=True,
            )
        )
    adam = results["halving"]["adam"]
    (first, last), count = ([*adam.values()][k]["measured"] for k in (0, -1)), len(adam)
    decades = math.log10(results["epsilons"][0] / results["epsilons"][-1])
    per_decade, theory = (last - first) / decades, -1 / math.log10(results["factor"])
    claims.append(
        Finding(
            "an ε ten times smaller is worth 1 / log₁₀(4√3) = 1.19 layers",
            f"{per_decade:.2f} over {count} values of ε, in theory {theory:.2f}",
            abs(per_decade - theory) < 0.05,
            theory=True,
        )
    )
    tiny = f"{TINY_EPSILONS[-1]:g}"
    largest = {dtype: max(by_eps[tiny]) for dtype, by_eps in results["dtypes"].items()}
    claims.append(
        Finding(
            f"with ε = {tiny} Adam is scale-free at any of these depths",
            f"largest step: {largest['float64']:.3g} γ in float64, {largest['float32']:.1e} γ in "
            "float32, where the second moment underflows",
            max(largest.values()) < 1.1 or (None if largest["float64"] < 1.1 else False),
        )
    )
    return [*claims, _finding_of_training(results["training"])]


def _finding_of_training(training: Results) -> Finding:
    deepest = {
        eps: max(
            (
                int(depth)
                for depth, by_eps in training["by_depth"].items()
                if statistics.median(run["test_accuracy"] for run in by_eps[eps]) > CHANCE
            ),
            default=0,
        )
        for eps in training["halving_in_theory"]
    }
    largest, *_, smallest = deepest.values()
    return Finding(
        "with a smaller ε Adam trains deeper sigmoid nets",
        "deepest net that trains: "
        + ", ".join(f"{depth or 'no'} layers at ε = {eps}" for eps, depth in deepest.items()),
        smallest > largest,
    )
