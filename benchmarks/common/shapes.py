"""The parameters whose steps are timed, as shapes alone: no model is built, no weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from benchmarks.common.nets import CLASSES, PIXELS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    """A model as an optimizer sees it."""

    title: str
    shapes: Callable[[], list[Shape]]

    def describe(self) -> dict[str, str | int]:
        shapes = self.shapes()
        return {
            "title": self.title,
            "tensors": len(shapes),
            "parameters": sum(map(math.prod, shapes)),
        }


def mnist_net() -> list[Shape]:
    """A perceptron 784-256×8-10."""
    widths = [PIXELS, *[256] * 8, CLASSES]
    layers = pairwise(widths)
    return [shape for fan_in, fan_out in layers for shape in ((fan_out, fan_in), (fan_out,))]


def resnet50() -> list[Shape]:
    # Takes a second, so not for everyone. torchvision comes without type hints.
    from torchvision.models import resnet50 as build  # type: ignore[import-untyped]

    with torch.device("meta"):
        net = build()
    return [tuple(parameter.shape) for parameter in net.parameters()]


def gpt2_small() -> list[Shape]:
    """Radford et al. (2019): 12 blocks of width 768; the output layer is the token embedding."""
    width, blocks, tokens, positions = 768, 12, 50_257, 1_024
    norm: list[Shape] = [(width,), (width,)]
    block = [
        *norm,
        (width, 3 * width), (3 * width,),  # queries, keys and values
        (width, width), (width,),  # what attention hands on
        *norm,
        (width, 4 * width), (4 * width,),
        (4 * width, width), (width,),
    ]  # fmt: skip
    return [(tokens, width), (positions, width), *block * blocks, *norm]


def tiny_tensors() -> list[Shape]:
    """500 vectors of 7 elements: all that counts is what a tensor costs in itself."""
    return [(7,)] * 500


MODELS = {
    "mnist": ParameterSet("MNIST net", mnist_net),
    "resnet50": ParameterSet("ResNet-50", resnet50),
    "gpt2": ParameterSet("GPT-2 small", gpt2_small),
    "tiny": ParameterSet("500 tiny tensors", tiny_tensors),
    "big": ParameterSet("one 25 M tensor", lambda: [(25_000_000,)]),
}
