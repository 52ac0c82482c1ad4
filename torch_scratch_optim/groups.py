"""Parameter groups: what weight decay is good for, and what it had better leave alone."""

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
    """Split a model's parameters into those that decay and those that do not.

    What multiplies its input decays: the matrices and the kernels. Exempt are biases (``bias`` is
    a word of their name, as in ``bias_k``) and the parameters of normalisation layers, of whatever
    shape, and everything with fewer than two dimensions. For any optimizer, torch's too::

        ScratchAdamW(decay_groups(model, weight_decay=0.1), lr=1e-3)

    Args:
        model: any module. Parameters that do not require gradients are left out; a parameter that
            several modules share appears once, and is exempt if one of them makes it so.
        weight_decay: λ ≥ 0 of the parameters that decay.
        embeddings: False exempts embeddings, too.
        named: keep each parameter's name, which the optimizer then puts into its checkpoints
            (``param_names``).

    Returns:
        At most two groups, those that decay first, each with its ``weight_decay`` and its
        parameters in the model's order. Empty groups are left out.

    Raises:
        ValueError: a negative weight decay.
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
