"""The nets: deep multilayer perceptrons that differ in their activation alone."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
TITLES = {"sigmoid": "deep sigmoid net", "relu": "deep ReLU net"}
PIXELS, CLASSES = 28 * 28, 10
DEPTH, WIDTH = 5, 128


def build_net(name: str, depth: int = DEPTH, width: int = WIDTH, seed: int = 0) -> nn.Sequential:
    """A net with `depth` hidden layers of `width` units and torch's default initialisation.

    The initial weights depend on the arguments alone; torch's global generator is left as it was.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = PIXELS
        for number in range(1, depth + 1):
            layers[f"layer_{number}"] = nn.Linear(inputs, width)
            layers[f"activation_{number}"] = ACTIVATIONS[name]()
            inputs = width
        layers["output"] = nn.Linear(inputs, CLASSES)
    return nn.Sequential(layers)


def weights_by_layer(net: nn.Module) -> dict[str, Tensor]:
    """The weight matrix of each linear layer, from the input to the output."""
    return {name: part.weight for name, part in net.named_modules() if isinstance(part, nn.Linear)}


def describe(name: str, depth: int, width: int) -> str:
    """For instance: deep sigmoid net 784-128×5-10."""
    return f"{TITLES[name]} {PIXELS}-{width}×{depth}-{CLASSES}"
