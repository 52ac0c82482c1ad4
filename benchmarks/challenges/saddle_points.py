"""Saddle points: how long it takes to leave one, and what noise does for that."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.challenges.lessons import learn
from benchmarks.challenges.setup import Facts, Finding, OnProgress, Setup, known
from benchmarks.challenges.walks import first_step, rounded, walk
from benchmarks.common.landscapes import LANDSCAPES, Landscape
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.synthetic import seeded_generator

RATES = (0.01, 0.03, 0.1, 0.3)
SHOWN_RATE = 0.03  # of the paths
NOISY_RATE = 0.1
EXPONENTS = tuple(range(1, 17))  # starts 10⁻¹ … 10⁻¹⁶ beside the ridge, and one on it
NEAR, FAR = 2, 12  # the exponents between which dependence on the start is judged
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
NOISE = 0.1  # standard deviation of the gradient of a single example on the saddle
PLATEAU_NET: dict[str, Any] = {"name": "sigmoid", "depth": 4, "width": 64}
PLATEAU_OPTIMIZER = "adam"
LEARNS = 1.8  # a loss below this has left the plateau at ln 10 = 2.30
SAMPLES = 24  # mini-batches whose gradients' variance is taken


def measure(setup: Setup, on_progress: OnProgress) -> Facts:
    facts: Facts = {"rates": RATES, "shown_rate": SHOWN_RATE, "exponents": EXPONENTS}
    facts["escape_steps"] = {
        name: _escapes(setup, name, on_progress) for name in ("saddle", "monkey", "cubic")
    }
    facts["closed_form"] = {
        f"{lr:g}": [math.log(10**exponent) / math.log(1 + 2 * lr) for exponent in EXPONENTS]
        for lr in RATES
    }
    facts["paths"] = {
        name: {
            optimizer: _path(LANDSCAPES[name], optimizer, setup.sizes.escape_steps)
            for optimizer in setup.optimizers
        }
        for name in ("saddle", "monkey", "cubic")
    }
    on_progress("gradient noise on the saddle", 0.6)
    facts["noise"] = _noise(setup)
    facts["deep_net"] = _plateau(setup, lambda text, share: on_progress(text, 0.7 + 0.3 * share))
    return facts


def _starts(name: str) -> list[tuple[float, ...]]:
    """Ever closer to the ridge, and on it. The cubic's are beyond its level place already."""
    offsets = [10.0**-exponent for exponent in EXPONENTS] + [0.0]
    return [(-x,) if name == "cubic" else (1.0, x) for x in offsets]


def escaped(name: str, positions: Tensor) -> Tensor:
    """On the saddle the closed form speaks of |y| = 1; elsewhere height tells who is away."""
    if name == "saddle":
        return positions[..., 1].abs() >= 1
    return LANDSCAPES[name].at(positions) <= -1


def _escapes(setup: Setup, landscape: str, on_progress: OnProgress) -> Facts:
    """Steps to escape by optimizer, learning rate and start; NaN: not within the steps given."""
    found: Facts = {}
    for number, name in enumerate(setup.optimizers):
        entry = OPTIMIZERS[name]
        on_progress(f"{LANDSCAPES[landscape].title}, {entry.title}",
                    0.6 * number / len(setup.optimizers))  # fmt: skip
        positions = walk(
            LANDSCAPES[landscape], entry.make_scratch, RATES, _starts(landscape),
            setup.sizes.escape_steps,
        )  # fmt: skip
        steps = first_step(escaped(landscape, positions))
        found[name] = {f"{lr:g}": rounded(row) for lr, row in zip(RATES, steps, strict=True)}
    return found


def _path(landscape: Landscape, optimizer: str, steps: int) -> list[list[float]]:
    """One walk from the landscape's own start, as far as its domain goes."""
    positions = walk(
        landscape, OPTIMIZERS[optimizer].make_scratch, [SHOWN_RATE], [landscape.start],
        min(steps, 200),
    )[:, 0, 0]  # fmt: skip
    outside = first_step(~landscape.holds(positions)).item()
    kept = len(positions) if math.isnan(outside) else int(outside) + 1
    return [rounded(point) for point in positions[:kept]]


def _noise(setup: Setup) -> Facts:
    """From the very ridge, with the noise of a mini-batch: standard deviation NOISE / √B."""
    steps: Facts = {name: {} for name in setup.optimizers}
    for name in setup.optimizers:
        for batch in BATCHES:
            generator = seeded_generator("gradient noise", setup.seed, batch)

            def bend(
                gradients: Tensor,
                scale: float = NOISE / math.sqrt(batch),
                generator: torch.Generator = generator,
            ) -> Tensor:
                noise = torch.randn(gradients.shape, generator=generator, dtype=gradients.dtype)
                return gradients + scale * noise  # fmt: skip

            positions = walk(
                LANDSCAPES["saddle"], OPTIMIZERS[name].make_scratch, [NOISY_RATE],
                [(1.0, 0.0)] * setup.sizes.repeats, 150, bend=bend,
            )  # fmt: skip
            taken = first_step(escaped("saddle", positions))[0]
            steps[name][str(batch)] = {
                "median": taken.nanmedian().item(),
                "escaped": taken.isfinite().double().mean().item(),
            }
    return {
        "standard_deviation": NOISE,
        "lr": NOISY_RATE,
        "batches": BATCHES,
        "repeats": setup.sizes.repeats,
        "steps": steps,
        # |y| after t steps is about s (1+2γ)ᵗ with s ∝ 1/√B, so that a batch k times as large
        # costs ln √k / ln(1+2γ) steps.
        "steps_per_doubling_in_theory": math.log(math.sqrt(2)) / math.log(1 + 2 * NOISY_RATE),
    }


def _plateau(setup: Setup, on_progress: OnProgress) -> Facts:
    """The deep sigmoid net's plateau: gradient variance and time to leave it, by batch size."""
    digits, batches = setup.the_digits(), setup.sizes.batches
    images = digits.train_images[: setup.sizes.images]
    labels = digits.train_labels[: setup.sizes.images]
    lr = OPTIMIZERS[PLATEAU_OPTIMIZER].lr
    found: dict[str, Any] = {
        "net": PLATEAU_NET, "optimizer": PLATEAU_OPTIMIZER, "lr": lr, "learns_below": LEARNS,
        "images": len(labels), "by_batch": {},
    }  # fmt: skip
    seeds = range(setup.seed, setup.seed + min(3, setup.sizes.seeds))
    for number, batch in enumerate(batches):
        steps = []
        for seed in seeds:
            on_progress(f"deep net, batches of {batch}", number / len(batches))
            net = build_net(**PLATEAU_NET, seed=seed)
            lesson = learn(
                net, OPTIMIZERS[PLATEAU_OPTIMIZER].make_scratch(net.parameters(), lr),
                images, labels, batch_size=batch, steps=setup.sizes.plateau_steps, seed=seed,
                until=LEARNS,
            )  # fmt: skip
            steps.append(lesson.steps if lesson.reached else math.inf)
        norm, variance = _gradient_noise(setup, images, labels, batch)
        median = statistics.median(steps)
        found["by_batch"][str(batch)] = {
            "steps": steps,
            "median_steps": median,
            "images_seen": median * batch,
            "gradient_norm_squared": norm,
            "gradient_variance": variance,
        }
    return found


def _gradient_noise(
    setup: Setup, images: Tensor, labels: Tensor, batch: int
) -> tuple[float, float]:
    """The squared norm of the full gradient and the variance of a batch's, summed over weights."""
    net = build_net(**PLATEAU_NET, seed=setup.seed)
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


def findings(facts: Facts) -> list[Finding]:
    found = []
    # The least learning rate resolves time best: a large one leaves within a step or two.
    saddle, lr = facts["escape_steps"]["saddle"], f"{facts['rates'][0]:g}"
    if "sgd" in saddle:
        worst = max(
            abs(steps - math.ceil(exact - 1e-9))
            for rate, exacts in facts["closed_form"].items()
            for steps, exact in zip(saddle["sgd"][rate], exacts, strict=False)
            if known(steps)
        )
        found.append(
            Finding(
                "SGD leaves x² − y² after ln(1/y₀) / ln(1 + 2γ) steps",
                f"{len(RATES)} learning rates × {len(EXPONENTS)} starts: off by {worst:.0f} steps "
                "at most",
                worst <= 1,
                theory=True,
            )
        )
    on_ridge = [steps[-1] for by_rate in saddle.values() for steps in by_rate.values()]
    found.append(
        Finding(
            "from y₀ = 0 nobody escapes x² − y²",
            f"{sum(map(known, on_ridge))} of {len(on_ridge)} walks escaped",
            not any(map(known, on_ridge)),
            theory=True,
        )
    )
    near, far = facts["exponents"].index(NEAR), facts["exponents"].index(FAR)
    for name, by_rate in saddle.items():
        steps = by_rate[lr]
        found.append(
            Finding(
                f"{OPTIMIZERS[name].title} hardly minds how close to the ridge it starts",
                f"learning rate {lr}: {steps[near]:.0f} steps from y₀ = 1e-{NEAR}, "
                f"{steps[far]:.0f} from 1e-{FAR}",
                bool(steps[far] <= 1.5 * steps[near]),
            )
        )
    through = [
        OPTIMIZERS[name].title
        for name, by_rate in facts["escape_steps"]["monkey"].items()
        if any(known(steps[-1]) for steps in by_rate.values())
    ]
    found.append(
        Finding(
            "from y₀ = 0 nobody escapes x³ − 3xy² either",
            f"carried through the level place, at some rate: {', '.join(through) or 'nobody'}",
            not through,
        )
    )
    crossing = [
        OPTIMIZERS[name].title for name, path in facts["paths"]["cubic"].items() if path[-1][0] < 0
    ]
    found.append(
        Finding(
            "the level place of x³, which is no minimum, holds nobody who comes from above",
            f"learning rate {facts['shown_rate']:g}: below 0 come {', '.join(crossing) or 'none'}",
            len(crossing) == len(facts["paths"]["cubic"]) or (None if crossing else False),
        )
    )
    found += _findings_of_noise(facts)
    return found


def _findings_of_noise(facts: Facts) -> list[Finding]:
    noise, net = facts["noise"], facts["deep_net"]
    found = []
    low, high = str(noise["batches"][0]), str(noise["batches"][-1])
    if "sgd" in noise["steps"]:
        steps = noise["steps"]["sgd"]
        doublings = math.log2(int(high) / int(low))
        slope = (steps[high]["median"] - steps[low]["median"]) / doublings
        theory = noise["steps_per_doubling_in_theory"]
        found.append(
            Finding(
                "each doubling of the batch costs SGD ln √2 / ln(1 + 2γ) more steps on the saddle",
                f"{slope:.2f} against {theory:.2f}",
                abs(slope - theory) < 0.25 * theory,
                theory=True,
            )
        )
    share = min(by["escaped"] for steps in noise["steps"].values() for by in steps.values())
    found.append(
        Finding(
            "with the noise of mini-batches everybody escapes, even from the ridge itself",
            f"at least {share:.0%} of {noise['repeats']} walks at each batch size",
            share == 1,
        )
    )
    small, *_, large = net["by_batch"]
    a, b = net["by_batch"][small], net["by_batch"][large]
    product = (a["gradient_variance"] * int(small)) / (b["gradient_variance"] * int(large))
    found.append(
        Finding(
            "the variance of a batch's gradient falls as 1/B",
            f"variance × B at B = {small} is {product:.2f} times that at B = {large}",
            0.5 < product < 2,
            theory=True,
        )
    )
    if known(a["median_steps"]) and known(b["median_steps"]):
        fewer = a["median_steps"] / b["median_steps"]
        found.append(
            Finding(
                "a larger batch leaves the deep net's plateau in as many fewer steps",
                f"{OPTIMIZERS[net['optimizer']].title}, B = {small} → {large}: "
                f"{a['median_steps']:.0f} → {b['median_steps']:.0f} steps, "
                f"{a['images_seen']:,.0f} → {b['images_seen']:,.0f} images",
                bool(fewer > 0.5 * int(large) / int(small)),
            )
        )
    return found
