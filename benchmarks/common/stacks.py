"""Many nets of one architecture as one net, whose parameters have one more dimension: the net.

The rules of the optimizers are elementwise. So nets that differ in their weights, their batches
and the numbers of their optimizers are stepped by one optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector


class StackedNets:
    """K nets of P parameters each.

    Attributes:
        parameter: K × P. It is one tensor, so a step of an optimizer takes few kernels.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self._net = nets[0]
        self._shapes = {name: p.shape for name, p in nets[0].named_parameters()}
        vectors = [parameters_to_vector(net.parameters()) for net in nets]
        self.parameter = nn.Parameter(torch.stack(vectors).detach())

    def __call__(self, images: Tensor) -> Tensor:
        """The scores of each net for images of its own: nets x images x classes."""
        scores: Tensor = vmap(self._score)(self.parameter, images)
        return scores

    def of_same(self, images: Tensor) -> Tensor:
        """The scores of each net for the same images."""
        scores: Tensor = vmap(self._score, in_dims=(0, None))(self.parameter, images)
        return scores

    def by_name(self, values: Tensor) -> dict[str, Tensor]:
        """Values for the parameters of one net, or of K nets along the first dimension."""
        parts = values.split([shape.numel() for shape in self._shapes.values()], dim=-1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _score(self, parameters: Tensor, images: Tensor) -> Tensor:
        scores: Tensor = functional_call(self._net, self.by_name(parameters), (images,))
        return scores
