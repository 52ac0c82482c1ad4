"""Saddle points: the steps to leave one, and the effect of gradient noise."""

from __future__ import annotations

import math
import statistics
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
    is_finite,
    rounded,
)
from benchmarks.challenges.optimizers import OPTIMIZERS, titles, with_corrected
from benchmarks.challenges.training import train
from benchmarks.challenges.trajectories import first_step, minimize
from benchmarks.common.synthetic import seeded_generator
from benchmarks.common.test_functions import TEST_FUNCTIONS

FUNCTIONS = ("saddle", "monkey", "cubic")
RATES = (0.01, 0.03, 0.1, 0.3)
PATH_RATE = 0.03
NOISY_RATE = 0.1
EXPONENTS = tuple(range(1, 17))  # starts at distance 10⁻¹ … 10⁻¹⁶ from the ridge, and one on it
NEAR, FAR = 2, 12  # the exponents between which dependence on the start is judged
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
NOISE = 0.1  # standard deviation of the gradient of a single example on the saddle
PLATEAU_NET: dict[str, Any] = {"name": "sigmoid", "depth": 4, "width": 64}
PLATEAU_OPTIMIZER = "adam"
PLATEAU_LOSS = 1.8  # a loss below this has left the plateau at ln 10 = 2.30
SAMPLES = 24  # mini-batches for the variance of the gradient


def measure(setup: Setup, on_progress: OnProgress) -> Results:
    names, steps = with_corrected(setup.optimizers), setup.sizes.escape_steps
    results: Results = {
        "rates": RATES, "path_rate": PATH_RATE, "exponents": EXPONENTS, "escape_steps": {},
        "closed_form": {
            f"{lr:g}": [math.log(10**exponent) / math.log(1 + 2 * lr) for exponent in EXPONENTS]
            for lr in RATES
        },
        "paths": {
            key: {name: _path(key, name, min(steps, 200)) for name in names} for key in FUNCTIONS
        },
    }  # fmt: skip
    for number, key in enumerate(FUNCTIONS):
        on_progress(TEST_FUNCTIONS[key].title, 0.6 * number / len(FUNCTIONS))
        results["escape_steps"][key] = {name: _escape_steps(key, name, steps) for name in names}
    on_progress("gradient noise on the saddle", 0.6)
    results["noise"] = _noise(setup, names)
    results["deep_net"] = _plateau(setup, lambda text, x: on_progress(text, 0.7 + 0.3 * x))
    return results


def _starts(key: str) -> list[tuple[float, ...]]:
    """Ever closer to the ridge, and on it; for the cubic, ever closer below its inflection."""
    offsets = [10.0**-exponent for exponent in EXPONENTS] + [0.0]
    return [(-x,) if key == "cubic" else (1.0, x) for x in offsets]


def escaped(key: str, positions: Tensor) -> Tensor:
    """|y| ≥ 1 on the saddle, as in the closed form; a low value elsewhere."""
    if key == "saddle":
        return positions[..., 1].abs() >= 1
    return TEST_FUNCTIONS[key].value(positions) <= -1


def _escape_steps(key: str, name: str, steps: int) -> Results:
    """Steps to escape by learning rate and start; NaN: not within the given steps."""
    make = OPTIMIZERS[name].make_scratch
    positions = minimize(TEST_FUNCTIONS[key], make, RATES, _starts(key), steps)
    first = first_step(escaped(key, positions))
    return {f"{lr:g}": rounded(row) for lr, row in zip(RATES, first, strict=True)}


def _path(key: str, name: str, steps: int) -> list[list[float]]:
    """The trajectory from the function's own start, up to the first step outside the domain."""
    objective, make = TEST_FUNCTIONS[key], OPTIMIZERS[name].make_scratch
    positions = minimize(objective, make, [PATH_RATE], [objective.start], steps)[:, 0, 0]
    outside = first_step(~objective.contains(positions)).nan_to_num(steps).int().item()
    return [rounded(point) for point in positions[: int(outside) + 1]]


def _noise(setup: Setup, names: list[str]) -> Results:
    """From the ridge itself, with the noise of a mini-batch: standard deviation NOISE / √B."""
    return {
        "standard_deviation": NOISE,
        "lr": NOISY_RATE,
        "batches": BATCHES,
        "repeats": setup.sizes.repeats,
        "steps": {
            name: {str(batch): _noisy_escape(setup, name, batch) for batch in BATCHES}
            for name in names
        },
        # |y| after t steps is about s (1+2γ)ᵗ with s ∝ 1/√B, so that a batch k times as large
        # costs ln √k / ln(1+2γ) steps.
        "steps_per_doubling_in_theory": math.log(math.sqrt(2)) / math.log(1 + 2 * NOISY_RATE),
    }


def _noisy_escape(setup: Setup, name: str, batch: int) -> Results:
    generator = seeded_generator("gradient noise", setup.seed, batch)
    positions = minimize(
        TEST_FUNCTIONS["saddle"], OPTIMIZERS[name].make_scratch, [NOISY_RATE],
        [(1.0, 0.0)] * setup.sizes.repeats, 150,
        transform=partial(_add_noise, NOISE / math.sqrt(batch), generator),
    )  # fmt: skip
    steps = first_step(escaped("saddle", positions))[0]
    return {
        "median": steps.nanmedian().item(),
        "escaped": steps.isfinite().double().mean().item(),
    }


def _add_noise(scale: float, generator: torch.Generator, gradients: Tensor) -> Tensor:
    noise = torch.randn(gradients.shape, generator=generator, dtype=gradients.dtype)
    return gradients + scale * noise


def _plateau(setup: Setup, on_progress: OnProgress) -> Results:
    """The deep sigmoid net's plateau: gradient variance and steps to leave it, by batch size."""
    digits, batches = setup.require_digits(), setup.sizes.batches
    images = digits.train_images[: setup.sizes.images]
    labels = digits.train_labels[: setup.sizes.images]
    optimizer = OPTIMIZERS[PLATEAU_OPTIMIZER]
    results: Results = {
        "net": PLATEAU_NET, "optimizer": PLATEAU_OPTIMIZER, "lr": optimizer.lr,
        "plateau_loss": PLATEAU_LOSS, "images": len(labels), "by_batch": {},
    }  # fmt: skip
    seeds = range(setup.seed, setup.seed + min(3, setup.sizes.seeds))
    for number, batch in enumerate(batches):
        steps = []
        for seed in seeds:
            on_progress(f"deep net, batches of {batch}", number / len(batches))
            net = setup.build_net(**PLATEAU_NET, seed=seed)
            result = train(
                net, optimizer.make_scratch(net.parameters(), optimizer.lr), images, labels,
                batch_size=batch, steps=setup.sizes.plateau_steps, seed=seed,
                target_loss=PLATEAU_LOSS,
            )  # fmt: skip
            steps.append(result.steps if result.reached else math.inf)
        norm, variance = _gradient_noise(setup, images, labels, batch)
        median = statistics.median(steps)
        results["by_batch"][str(batch)] = {
            "steps": steps,
            "median_steps": median,
            "images_seen": median * batch,
            "gradient_norm_squared": norm,
            "gradient_variance": variance,
        }
    return results


def _gradient_noise(
    setup: Setup, images: Tensor, labels: Tensor, batch: int
) -> tuple[float, float]:
    """The squared norm of the full gradient and the variance of a batch's, summed over weights."""
    net = setup.build_net(**PLATEAU_NET, seed=setup.seed)
    weights = [*net.parameters()]

    def gradient(chosen: Tensor | slice) -> Tensor:
        loss = cross_entropy(net(images[chosen]), labels[chosen])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    full = gradient(slice(None))
    generator = seeded_generator("gradient variance", setup.seed, batch)
    distances = [
        (gradient(torch.randint(len(labels), (batch,), generator=generator)) - full).square().sum()
        for _ in range(SAMPLES)
    ]
    return full.square().sum().item(), torch.stack(distances).mean().item()


def findings(results: Results) -> list[Finding]:
    # The smallest learning rate resolves time best: a large one escapes within a step or two.
    saddle, lr = results["escape_steps"]["saddle"], f"{results['rates'][0]:g}"
    claims = []
    if "sgd" in saddle:
        worst = max(
            abs(steps - math.ceil(exact - 1e-9))
            for rate, exacts in results["closed_form"].items()
            for steps, exact in zip(saddle["sgd"][rate], exacts, strict=False)
            if is_finite(steps)
        )
        claims.append(
            Finding(
                "SGD leaves x² − y² after ln(1/y₀) / ln(1 + 2γ) steps",
                f"{len(RATES)} learning rates × {len(EXPONENTS)} starts: off by at most "
                f"{worst:.0f} steps",
                worst <= 1,
                theory=True,
            )
        )
    on_ridge = [steps[-1] for by_rate in saddle.values() for steps in by_rate.values()]
    claims.append(
        Finding(
            "from y₀ = 0 no optimizer leaves x² − y²",
            f"{sum(map(is_finite, on_ridge))} of {len(on_ridge)} trajectories do",
            not any(map(is_finite, on_ridge)),
            theory=True,
        )
    )
    near, far = results["exponents"].index(NEAR), results["exponents"].index(FAR)
    for name, by_rate in saddle.items():
        steps = by_rate[lr]
        claims.append(
            Finding(
                f"{OPTIMIZERS[name].title}: the distance from the ridge hardly matters",
                f"learning rate {lr}: {steps[near]:.0f} steps from y₀ = 1e-{NEAR}, "
                f"{steps[far]:.0f} from 1e-{FAR}",
                bool(steps[far] <= 1.5 * steps[near]),
            )
        )
    escaping = [
        name
        for name, by_rate in results["escape_steps"]["monkey"].items()
        if any(is_finite(steps[-1]) for steps in by_rate.values())
    ]
    claims.append(
        Finding(
            "from y₀ = 0 no optimizer leaves x³ − 3xy² either",
            f"momentum or a large step crosses the saddle at some rate: {titles(escaping)}",
            not escaping,
        )
    )
    paths = results["paths"]["cubic"]
    crossing = [name for name, path in paths.items() if path[-1][0] < 0]
    claims.append(
        Finding(
            "the inflection of x³ does not stop an optimizer that comes from above",
            f"learning rate {results['path_rate']:g}: {titles(crossing)} passes",
            len(crossing) == len(paths) or (None if crossing else False),
        )
    )
    return claims + _findings_of_noise(results)


def _findings_of_noise(results: Results) -> list[Finding]:
    noise, net = results["noise"], results["deep_net"]
    claims = []
    if "sgd" in noise["steps"]:
        steps, (low, *_, high) = noise["steps"]["sgd"], noise["batches"]
        doublings = math.log2(high / low)
        slope = (steps[str(high)]["median"] - steps[str(low)]["median"]) / doublings
        theory = noise["steps_per_doubling_in_theory"]
        claims.append(
            Finding(
                "each doubling of the batch costs SGD ln √2 / ln(1 + 2γ) more steps on the saddle",
                f"{slope:.2f} against {theory:.2f}",
                abs(slope - theory) < 0.25 * theory,
                theory=True,
            )
        )
    share = min(by["escaped"] for steps in noise["steps"].values() for by in steps.values())
    claims.append(
        Finding(
            "with the noise of mini-batches every optimizer escapes, even from the ridge",
            f"at least {share:.0%} of {noise['repeats']} trajectories at each batch size",
            share == 1,
        )
    )
    small, *_, large = net["by_batch"]
    first, last = net["by_batch"][small], net["by_batch"][large]
    product = first["gradient_variance"] * int(small) / (last["gradient_variance"] * int(large))
    claims.append(
        Finding(
            "the variance of a batch's gradient falls as 1/B",
            f"variance × B at B = {small} is {product:.2f} times that at B = {large}",
            0.5 < product < 2,
            theory=True,
        )
    )
    if is_finite(first["median_steps"]) and is_finite(last["median_steps"]):
        fewer = first["median_steps"] / last["median_steps"]
        claims.append(
            Finding(
                "k times the batch leaves the deep net's plateau in a k-th of the steps",
                f"{OPTIMIZERS[net['optimizer']].title}, B = {small} → {large}: "
                f"{first['median_steps']:.0f} → {last['median_steps']:.0f} steps, "
                f"{first['images_seen']:,.0f} → {last['images_seen']:,.0f} images",
                bool(fewer > 0.5 * int(large) / int(small)),
            )
        )
    return claims
