"""Parameter groups with and without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ._options import Group, check_numbers

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def decay_groups(
    model: nn.Module, weight_decay: float, *, embeddings: bool = True, named: bool = False
) -> list[Group]:
    """Split a model's parameters into a group with weight decay and a group without.

    Matrices and convolution kernels decay. Biases (``bias`` is part of their name, as in
    ``bias_k``), all parameters of normalization layers and all parameters with fewer than two
    dimensions do not. The groups suit any optimizer, also those of torch::

        ScratchAdamW(decay_groups(model, weight_decay=0.1), lr=1e-3)

    Args:
        model: any module. Parameters that do not require gradients are left out. A parameter that
            several modules share appears once, without decay if one of them is a normalization
            layer.
        weight_decay: λ ≥ 0 of the first group.
        embeddings: False puts embeddings into the group without decay. Default True.
        named: keep the names of the parameters, which the optimizer then stores in its checkpoints
            (``param_names``). Default False.

    Returns:
        The group with decay, then the group without, each with its ``weight_decay`` and its
        parameters in the order of the model. An empty group is left out.

    Raises:
        ValueError: the weight decay is negative.
    """
    check_numbers({"weight_decay": weight_decay}, "weight_decay")
    kinds = NORMS if embeddings else NORMS + EMBEDDINGS
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    exempt = {p for module in modules for p in module.parameters(recurse=False)}
    decaying: list[Any] = []
    others: list[Any] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            is_bias = "bias" in name.rpartition(".")[2].split("_")
            decays = p.ndim > 1 and p not in exempt and not is_bias
            (decaying if decays else others).append((name, p) if named else p)
    groups = [(decaying, weight_decay), (others, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
