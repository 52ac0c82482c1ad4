"""The nets of the publications, with their initial weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from benchmarks.common.synthetic import seeded_generator

Initialise = Callable[[nn.Linear, Generator], None]

# The standard deviation of a standard normal variable that is cut off at ± 2.
CUT_DEVIATION = 0.87962566103423978


def build(
    sizes: Sequence[int], activation: type[nn.Module], initialise: Initialise, seed: int
) -> nn.Sequential:
    """A multilayer perceptron from `sizes[0]` inputs to `sizes[-1]` scores.

    The initial weights depend on the arguments alone; torch's global generator is not touched.
    """
    generator = seeded_generator("published weights", seed)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layer = skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            initialise(layer, generator)
        if number == len(sizes) - 1:
            layers["output"] = layer
        else:
            layers[f"layer_{number}"] = layer
            layers[f"activation_{number}"] = activation()
    return nn.Sequential(layers)


class SideBySide(nn.Module):
    """Sigmoid nets of one shape, trained together: their parameters are stacked.

    All see the same images. What each does is its own affair, for a rule that steps them works
    element by element; scores come as nets × images × classes.
    """

    def __init__(self, nets: Sequence[nn.Sequential]) -> None:
        super().__init__()
        layers = list(
            zip(*([p for p in net if isinstance(p, nn.Linear)] for net in nets), strict=True)
        )
        self.weights = nn.ParameterList(
            torch.stack([part.weight.detach().T for part in same]) for same in layers
        )
        self.biases = nn.ParameterList(
            torch.stack([part.bias.detach()[None] for part in same]) for same in layers
        )

    def forward(self, images: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            images = (images.sigmoid() if number else images) @ weight + bias
        return images


def truncated_normal(deviation: float) -> Initialise:
    """TensorFlow's: normal, cut off at two deviations; biases 0."""

    def initialise(layer: nn.Linear, generator: Generator) -> None:
        _truncated(layer, deviation, generator)

    return initialise


def lecun_truncated(layer: nn.Linear, generator: Generator) -> None:
    """Weights of variance 1/inputs, normal and cut off at two deviations; biases 0."""
    _truncated(layer, math.sqrt(1 / layer.in_features) / CUT_DEVIATION, generator)


def _truncated(layer: nn.Linear, deviation: float, generator: Generator) -> None:
    limit = 2 * deviation
    nn.init.trunc_normal_(layer.weight, 0, deviation, -limit, limit, generator=generator)
    nn.init.zeros_(layer.bias)


def normal(layer: nn.Linear, generator: Generator) -> None:
    """Weights N(0, 1/inputs), biases N(0, 1)."""
    nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.in_features), generator=generator)
    nn.init.normal_(layer.bias, generator=generator)


def large_normal(layer: nn.Linear, generator: Generator) -> None:
    """Weights and biases N(0, 1)."""
    nn.init.normal_(layer.weight, generator=generator)
    nn.init.normal_(layer.bias, generator=generator)


def uniform(layer: nn.Linear, generator: Generator) -> None:
    """Weights of variance 1/(3 · inputs), as torch's default; biases 0."""
    limit = 1 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -limit, limit, generator=generator)
    nn.init.zeros_(layer.bias)


def zeros(layer: nn.Linear, generator: Generator) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
