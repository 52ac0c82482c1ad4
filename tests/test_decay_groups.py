"""decay_groups: which parameters decay, each of them once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from torch_scratch_optim import ScratchAdamW, decay_groups

from .cases import DEVICE, PAIRS, Case, assert_equal_state, train


class Net(nn.Module):
    """A little of everything; the output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.batch = nn.BatchNorm2d(2)
        self.layer = nn.LayerNorm((3, 4))  # of two dimensions, and still no matrix
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.bias = nn.Parameter(torch.zeros(3, 4))


def names(model: nn.Module, **options: Any) -> list[list[str]]:
    groups = decay_groups(model, 0.1, named=True, **options)
    return [[name for name, _ in group["params"]] for group in groups]


MATRICES = ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
OTHERS = [
    "scale", "bias", "conv.bias", "batch.weight", "batch.bias", "layer.weight", "layer.bias",
    "attention.in_proj_bias", "attention.bias_k", "attention.bias_v", "attention.out_proj.bias",
    "head.bias",
]  # fmt: skip


def test_decay_groups_matrices_decay_and_biases_norms_and_vectors_do_not() -> None:
    assert names(Net()) == [["embedding.weight", *MATRICES], OTHERS]


def test_decay_groups_may_exempt_embeddings_that_are_the_output_layer() -> None:
    assert names(Net(), embeddings=False) == [
        MATRICES,
        [*OTHERS[:2], "embedding.weight", *OTHERS[2:]],
    ]


def test_decay_groups_hold_every_trainable_parameter_once() -> None:
    model = Net()
    groups = decay_groups(model, 0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_decay_groups_leave_an_empty_group_out() -> None:
    assert [g["weight_decay"] for g in decay_groups(nn.Linear(2, 2, bias=False), 0.1)] == [0.1]
    assert [g["weight_decay"] for g in decay_groups(nn.BatchNorm1d(2), 0.1)] == [0.0]
    with pytest.raises(ValueError, match="empty parameter list"):
        ScratchAdamW(decay_groups(nn.Linear(2, 2).requires_grad_(False), 0.1))


def test_decay_groups_refuse_a_negative_decay() -> None:
    with pytest.raises(ValueError, match="Invalid weight_decay value: -1"):
        decay_groups(Net(), -1.0)


def test_decay_groups_names_are_kept_in_checkpoints() -> None:
    state = ScratchAdamW(decay_groups(Net(), 0.1, named=True)).state_dict()
    kept = [group["param_names"] for group in state["param_groups"]]
    assert kept == [["embedding.weight", *MATRICES], OTHERS]


@pytest.mark.parametrize("case", [Case(name) for name in PAIRS], ids=str)
def test_decay_groups_are_taken_by_any_optimizer(case: Case) -> None:
    model = Net().to(DEVICE)
    ours, theirs = (
        make(decay_groups(copy.deepcopy(model), 0.1)) for make in (case.ours, case.torchs)
    )
    for step in train(ours, theirs, steps=range(3)):
        assert_equal_state(ours, theirs, f"step {step}")
