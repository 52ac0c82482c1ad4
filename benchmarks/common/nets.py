"""The nets: deep multilayer perceptrons; what is done against vanishing gradients can be added."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
OTHER_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh}
# Chosen for the activation: He for ReLU, Xavier (Glorot) for those that saturate.
INITIALISATIONS = ("default", "chosen")
WIRINGS = ("plain", "batch_norm", "residual")
TITLES = {"sigmoid": "deep sigmoid net", "relu": "deep ReLU net"}
PIXELS, CLASSES = 28 * 28, 10
DEPTH, WIDTH = 5, 128


class Residual(nn.Sequential):
    """Adds what comes in to what goes out."""

    def forward(self, input: Tensor) -> Tensor:
        output = input
        for part in self:
            output = part(output)
        return input + output


def build_net(
    name: str,
    depth: int = DEPTH,
    width: int = WIDTH,
    seed: int = 0,
    initialisation: str = "default",
    wiring: str = "plain",
    inputs: int = PIXELS,
) -> nn.Sequential:
    """A net with `depth` hidden layers of `width` units, by default with torch's initialisation.

    The initial weights depend on the arguments alone; torch's global generator is left as it was.
    """
    activation = (ACTIVATIONS | OTHER_ACTIVATIONS)[name]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, depth + 1):
            parts = OrderedDict[str, nn.Module]()
            parts[f"layer_{number}"] = nn.Linear(inputs, width)
            if wiring == "batch_norm":
                parts[f"norm_{number}"] = nn.BatchNorm1d(width)
            parts[f"activation_{number}"] = activation()
            if wiring == "residual" and inputs == width:
                layers[f"block_{number}"] = Residual(parts)
            else:
                layers.update(parts)
            inputs = width
        layers["output"] = nn.Linear(inputs, CLASSES)
        net = nn.Sequential(layers)
        if initialisation == "chosen":
            _initialise(net, name)
    return net


@torch.no_grad()
def _initialise(net: nn.Module, activation: str) -> None:
    for part in net.modules():
        if isinstance(part, nn.Linear):
            if activation == "relu":
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)


def weights_by_layer(net: nn.Module) -> dict[str, Tensor]:
    """The weight matrix of each linear layer, from the input to the output."""
    return {
        name.rpartition(".")[2]: part.weight
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear)
    }


def describe(name: str, depth: int, width: int, inputs: int = PIXELS) -> str:
    """For instance: deep sigmoid net 784-128×5-10."""
    return f"{TITLES[name]} {inputs}-{width}×{depth}-{CLASSES}"
