"""Vanishing gradients: how they shrink with depth, and which remedies train a deep sigmoid net."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.challenges.experiment import Curve, Finding, OnProgress, Results, Setup, rounded
from benchmarks.challenges.optimizers import OPTIMIZERS, with_corrected
from benchmarks.challenges.training import mean_losses, train
from benchmarks.challenges.trajectories import first_step, minimize
from benchmarks.common.nets import INITIALISATIONS, WIRINGS, weights_by_layer
from benchmarks.common.test_functions import TEST_FUNCTIONS
from benchmarks.common.training import evaluate

ACTIVATIONS = ("sigmoid", "tanh", "relu")
# Per layer, in theory: torch's default weights have variance 1/(3n), the sigmoid's slope is ≤ 1/4.
FACTOR = math.sqrt(1 / 3) / 4
TANH_RATE = 0.1
TANH_STEPS, TANH_STEPS_OF_SGD = 500, 4000  # at most
BATCH = 128
# The changes to a deep sigmoid net that SGD does not train.
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "Adam": {"optimizer": "adam"},
    "Xavier initialisation": {"initialisation": "chosen"},
    "batch normalisation": {"wiring": "batch_norm"},
    "residual connections": {"wiring": "residual"},
    "ReLU": {"name": "relu"},
    "ReLU, He initialisation": {"name": "relu", "initialisation": "chosen"},
}
REMEDY_DEPTHS, REMEDY_WIDTH = (5, 20), 64
REMEDY_RATES = {"sgd": (1e-3, 1e-2, 1e-1, 1.0, 10.0), "adam": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}
REMEDY_SEEDS, FINALISTS = 3, 2  # the best rates of the first seed are run with the others
FINAL_STEPS = 20  # whose mean loss is the final one
CHANCE = 0.2  # an accuracy below this is no better than guessing, or hardly
GRADIENTS = tuple(10.0**-k for k in range(0, 17))  # constant ones
EPSILON_STEPS = 100


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    on_progress("tanh", 0.0)
    results: Results = {"tanh": _tanh(setup), "epsilon": _constant_gradients(setup)}
    results["gradients"] = _gradients(setup, lambda text, x: on_progress(text, 0.1 + 0.2 * x))
    results["adam_by_depth"] = _adam_by_depth(setup)
    results["remedies"] = _remedies(setup, lambda text, x: on_progress(text, 0.3 + 0.7 * x))
    return results


def _tanh(setup: Setup) -> Results:
    """From x = 4, where tanh is nearly level, to x = 0."""
    results: Results = {"lr": TANH_RATE, "start": 4.0, "by_optimizer": {}}
    results["gradient_at_start"] = 1 - math.tanh(4.0) ** 2
    # dx/dt = −γ / cosh² x, integrated from x to 0.
    results["sgd_in_theory"] = (math.sinh(2 * 4.0) / 4 + 4.0 / 2) / TANH_RATE
    for name in with_corrected(setup.optimizers):
        steps = TANH_STEPS_OF_SGD if name == "sgd" else TANH_STEPS
        make = OPTIMIZERS[name].make_scratch
        x = minimize(TEST_FUNCTIONS["tanh"], make, [TANH_RATE], [(4.0,)], steps)[:, 0, 0, 0]
        results["by_optimizer"][name] = {
            "steps_to_0": first_step(x <= 0).item(),
            "x": rounded(x[:101]),
        }
    return results


def _constant_gradients(setup: Setup) -> Results:
    """How far constant gradients move a parameter, in units of the learning rate."""
    results: Results = {
        "gradients": GRADIENTS, "steps": EPSILON_STEPS, "eps": {}, "distance": {},
    }  # fmt: skip
    for name in setup.optimizers:
        gradients = torch.tensor(GRADIENTS, dtype=torch.float64)
        p = torch.nn.Parameter(torch.zeros_like(gradients))
        optimizer = OPTIMIZERS[name].make_scratch([p], lr=1.0)
        for _ in range(EPSILON_STEPS):
            p.grad = gradients.clone()
            optimizer.step()
        results["distance"][name] = p.detach().abs().tolist()
        results["eps"][name] = optimizer.param_groups[0].get("eps")
    return results


def _gradients(setup: Setup, on_progress: OnProgress) -> Results:
    """Norms of the weights' gradients, by layer, before any training."""
    digits, sizes = setup.require_digits(), setup.sizes
    images, labels = digits.train_images[:BATCH], digits.train_labels[:BATCH]
    results: Results = {"depths": sizes.depths, "width": sizes.width, "images": BATCH,
                        "seeds": sizes.seeds, "factor_in_theory": FACTOR, "nets": {}}  # fmt: skip
    kinds = [(a, i, w) for a in ACTIVATIONS for i in INITIALISATIONS for w in WIRINGS]
    for number, (activation, initialisation, wiring) in enumerate(kinds):
        on_progress(f"{activation}, {initialisation}, {wiring}", number / len(kinds))
        by_depth = {}
        for depth in sizes.depths:
            norms = [
                _layer_norms(
                    setup.build_net(activation, depth, sizes.width, seed, initialisation, wiring),
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
        by_init = results["nets"].setdefault(activation, {})
        by_init.setdefault(initialisation, {})[wiring] = by_depth
    return results


def _layer_norms(net: torch.nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    net.train()
    weights = [*weights_by_layer(net).values()]
    gradients = torch.autograd.grad(cross_entropy(net(images), labels), weights)
    # In float64: after 30 layers the squares of a gradient underflow in float32.
    return [gradient.double().norm().item() for gradient in gradients]


def _factor(norms: Sequence[float]) -> float:
    """What a layer multiplies the gradient by: the mean over the hidden layers of equal width."""
    hidden = norms[1:-1]
    return float((hidden[0] / hidden[-1]) ** (1 / (len(hidden) - 1)))


def _adam_by_depth(setup: Setup) -> Results:
    """Adam's first step in the deep sigmoid net: how far the weights of each layer move."""
    digits, sizes = setup.require_digits(), setup.sizes
    lr = OPTIMIZERS["adam"].lr
    results: Results = {"lr": lr, "by_depth": {}}
    for depth in sizes.depths:
        net = setup.build_net("sigmoid", depth, sizes.width, setup.seed)
        layers = [*weights_by_layer(net).values()]
        before = [w.detach().clone() for w in layers]
        optimizer = OPTIMIZERS["adam"].make_scratch(net.parameters(), lr)
        train(net, optimizer, digits.train_images[:BATCH], digits.train_labels[:BATCH],
              batch_size=BATCH, steps=1, seed=setup.seed)  # fmt: skip
        # Of each layer: the root mean square of the step, in units of the learning rate.
        results["by_depth"][str(depth)] = [
            ((w - old).double().square().mean().sqrt() / lr).item()
            for w, old in zip(layers, before, strict=True)
        ]
    return results


def _remedies(setup: Setup, on_progress: OnProgress) -> Results:
    sizes = setup.sizes
    results: Results = {
        "images": sizes.images, "steps": sizes.epochs * math.ceil(sizes.images / BATCH),
        "batch_size": BATCH, "width": REMEDY_WIDTH, "rates": REMEDY_RATES, "by_depth": {},
    }  # fmt: skip
    jobs = [(depth, remedy) for depth in REMEDY_DEPTHS for remedy in REMEDIES]
    for number, (depth, remedy) in enumerate(jobs):
        on_progress(f"{depth} layers, {remedy}", number / len(jobs))
        by_remedy = results["by_depth"].setdefault(str(depth), {})
        by_remedy[remedy] = _remedy(setup, depth, dict(REMEDIES[remedy]))
    return results


def _remedy(setup: Setup, depth: int, changes: dict[str, Any]) -> Results:
    """The best learning rate: by one seed, then the best two by the median of all seeds."""
    optimizer = changes.pop("optimizer", "sgd")
    run = partial(_train_remedy, setup, depth, optimizer, changes)
    rates = REMEDY_RATES[optimizer]
    first, *others = range(setup.seed, setup.seed + min(REMEDY_SEEDS, setup.sizes.seeds))
    runs = {lr: [run(lr, first)] for lr in rates}
    finalists = sorted(rates, key=lambda lr: runs[lr][0]["final_loss"])[:FINALISTS]
    for lr in finalists:
        runs[lr] += [run(lr, seed) for seed in others]
    losses = {lr: statistics.median(r["final_loss"] for r in runs[lr]) for lr in finalists}
    best = min(finalists, key=losses.__getitem__)
    return {
        "optimizer": optimizer,
        "lr": best,
        "at_edge": best in (rates[0], rates[-1]),
        "final_loss": losses[best],
        "accuracies": [run["test_accuracy"] for run in runs[best]],
        "test_accuracy": statistics.median(run["test_accuracy"] for run in runs[best]),
        "loss": runs[best][0]["loss"],
        "accuracy_by_rate": {f"{lr:g}": runs[lr][0]["test_accuracy"] for lr in rates},
    }


def _train_remedy(
    setup: Setup, depth: int, optimizer: str, changes: dict[str, Any], lr: float, seed: int
) -> Results:
    digits, sizes = setup.require_digits(), setup.sizes
    images, labels = digits.train_images[: sizes.images], digits.train_labels[: sizes.images]
    steps = sizes.epochs * math.ceil(len(labels) / BATCH)
    net = setup.build_net(**{"name": "sigmoid", "depth": depth, "width": REMEDY_WIDTH, "seed": seed,
                       **changes})  # fmt: skip
    result = train(
        net, OPTIMIZERS[optimizer].make_scratch(net.parameters(), lr), images, labels,
        batch_size=BATCH, steps=steps, seed=seed,
    )  # fmt: skip
    net.eval()
    final_loss = statistics.fmean(result.losses[-FINAL_STEPS:])
    return {
        "final_loss": final_loss if math.isfinite(final_loss) else math.inf,
        "test_accuracy": evaluate(net, digits.test_images, digits.test_labels)[1],
        "loss": mean_losses(result.losses),
    }


def curves(results: Results) -> list[Curve]:
    return [
        Curve(f"{depth} layers/{remedy}", best["loss"]["step"], best["loss"]["loss"])
        for depth, by_remedy in results["remedies"]["by_depth"].items()
        for remedy, best in by_remedy.items()
    ]


def findings(results: Results) -> list[Finding]:
    claims = []
    tanh, gradients = results["tanh"]["by_optimizer"], results["gradients"]
    if "sgd" in tanh:
        steps, theory = tanh["sgd"]["steps_to_0"], results["tanh"]["sgd_in_theory"]
        claims.append(
            Finding(
                "SGD needs (sinh(2x)/4 + x/2) / γ steps down tanh from x = 4",
                f"{steps:.0f} against {theory:.0f}; "
                + ", ".join(
                    f"{OPTIMIZERS[name].title} {path['steps_to_0']:.0f}"
                    for name, path in tanh.items()
                    if name != "sgd"
                ),
                abs(steps - theory) < 0.01 * theory,
                theory=True,
            )
        )
    plain = gradients["nets"]["sigmoid"]["default"]["plain"]
    factors = [by_depth["factor"] for by_depth in plain.values()]
    claims.append(
        Finding(
            "a sigmoid layer at torch's default passes on √(1/3)/4 of the gradient",
            f"{min(factors):.3f} … {max(factors):.3f} against {gradients['factor_in_theory']:.3f}",
            all(abs(factor / gradients["factor_in_theory"] - 1) < 0.1 for factor in factors),
            theory=True,
        )
    )
    claims += _findings_of_gradients(gradients)
    for remedy in next(iter(results["remedies"]["by_depth"].values())):
        by_depth = {d: by[remedy] for d, by in results["remedies"]["by_depth"].items()}
        trains = [best["test_accuracy"] > CHANCE for best in by_depth.values()]
        claims.append(
            Finding(
                "SGD trains the deep sigmoid net"
                if remedy == "none"
                else f"a remedy that trains the deep sigmoid net: {remedy}",
                "; ".join(f"{depth} layers: {_accuracy(best)}" for depth, best in by_depth.items()),
                all(trains) or (None if any(trains) else False),
            )
        )
    epsilon = results["epsilon"]
    for name, eps in epsilon["eps"].items():
        if eps is not None:
            distance = epsilon["distance"][name]
            halved = next(
                g for g, d in zip(GRADIENTS, distance, strict=True) if d < distance[0] / 2
            )
            claims.append(
                Finding(
                    f"{OPTIMIZERS[name].title}: the scale of the gradient does not matter",
                    f"from a constant gradient of {halved:.0e} on, {epsilon['steps']} steps move "
                    f"less than half as far; ε = {eps:g}",
                    None,
                )
            )
    return claims


def _accuracy(best: Results) -> str:
    low, high = min(best["accuracies"]), max(best["accuracies"])
    if high < CHANCE:
        return "chance"
    edge = ", at the edge of the grid" if best["at_edge"] else ""
    return f"{best['test_accuracy']:.1%} ({low:.1%} … {high:.1%}) at rate {best['lr']:g}{edge}"


def _findings_of_gradients(gradients: Results) -> list[Finding]:
    nets, deepest = gradients["nets"], str(gradients["depths"][-1])
    claims = []
    for claim, (activation, initialisation, wiring) in (
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
        factor = nets[activation][initialisation][wiring][deepest]["factor"]
        measured = f"{deepest} layers: × {factor:.3f} per layer"
        claims.append(Finding(claim, measured, bool(0.9 < factor < 1.2)))
    together = nets["relu"]["chosen"]["residual"][deepest]["norms"][0]
    alone = nets["relu"]["chosen"]["plain"][deepest]["norms"][0]
    claims.append(
        Finding(
            "He initialisation and residual connections combine well",
            f"{deepest} layers: the first one's gradient is {together:.1e} with both, "
            f"{alone:.1e} with He initialisation alone",
            bool(together < 10 * alone),
        )
    )
    return claims
