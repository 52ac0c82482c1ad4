"""Sparse gradients, as those of embeddings, give what torch gives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from torch_scratch_optim.engines import CPU_BLOCK

from .cases import CASES, DEVICE, Case, assert_equal_state, leaves

MANY = CPU_BLOCK // 2 + 37_856  # rows of 2 elements: together more than a block
MAY_BE_SPARSE = [
    case
    for case in CASES
    if case.optimizer in ("SGD", "Momentum", "AdaGrad") and "weight_decay" not in case.options
]


@pytest.fixture(autouse=True)
def _torch_need_not_be_told() -> Iterator[None]:
    """torch's AdaGrad makes sparse tensors without a word about checks, and so gets a warning."""
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        yield


by_name = pytest.mark.parametrize("case", MAY_BE_SPARSE, ids=str)
engines = pytest.mark.parametrize(
    "engine",
    [{"foreach": False}, {}, pytest.param({"fused": True}, marks=pytest.mark.cpu)],
    ids=["loop", "default", "fused"],
)


def embeddings() -> list[Tensor]:
    # The second is large enough to be cut into blocks, were its gradient dense.
    return [torch.ones(n, w, requires_grad=True, device=DEVICE) for n, w in ((20, 3), (MANY, 2))]


def sparse_gradients(step: int, coalesced: bool) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(step)
    for rows, width in ((20, 3), (MANY, 2)):
        where = torch.randint(rows, (1, 7), generator=random)  # some rows twice, if they are few
        values = torch.randn(7, width, generator=random)
        gradient = torch.sparse_coo_tensor(where, values, (rows, width), check_invariants=True)
        gradient = gradient.to(DEVICE)
        yield gradient.coalesce() if coalesced else gradient


@pytest.mark.parametrize(
    "coalesced",
    # On a GPU torch adds up rows that come twice in any order.
    [True, pytest.param(False, marks=pytest.mark.cpu)],
)
@engines
@by_name
def test_sparse_gradients_give_what_torch_gives(
    case: Case, engine: dict[str, bool], coalesced: bool
) -> None:
    ours, theirs = case.ours(embeddings(), **engine), case.torchs(embeddings())
    for step in range(10):
        for twin in (ours, theirs):
            for p, gradient in zip(leaves(twin), sparse_gradients(step, coalesced), strict=True):
                p.grad = gradient
            twin.step()
        if case.optimizer == "AdaGrad":
            assert_equal_state(ours, theirs, f"step {step}")
        else:
            for p, q in zip(leaves(ours), leaves(theirs), strict=True):
                assert torch.equal(p, q), f"step {step}"
            for p, q in zip(leaves(ours), leaves(theirs), strict=True):
                assert list(ours.state[p]) == list(theirs.state[q])
                for name, value in theirs.state[q].items():
                    assert torch.equal(ours.state[p][name].to_dense(), value.to_dense())


@pytest.mark.parametrize("case", [c for c in MAY_BE_SPARSE if "nesterov" not in c.options], ids=str)
def test_sparse_gradients_may_alternate_with_dense_ones(case: Case) -> None:
    ours, theirs = case.ours(embeddings()[:1]), case.torchs(embeddings()[:1])
    for step in range(6):
        for twin in (ours, theirs):
            gradient = next(sparse_gradients(step, coalesced=True))
            # The first is dense, and so is the momentum then, which sparse gradients can join. Not
            # so Nesterov's, which adds it to the gradient: torch has no sum of that kind.
            leaves(twin)[0].grad = gradient if step % 2 else gradient.to_dense()
            twin.step()
        assert torch.equal(leaves(ours)[0], leaves(theirs)[0]), f"step {step}"


def test_sparse_gradients_leave_untouched_rows_alone() -> None:
    (table, _) = embeddings()
    ours = Case("AdaGrad").ours([table])
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([[4]]), torch.ones(1, 3), (20, 3), device=DEVICE, check_invariants=True
    )
    ours.step()
    moved = (table != 1).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [4]
    assert ours.state[table]["sum"].sum() == 3


@pytest.mark.cpu  # by the engine fused
@pytest.mark.parametrize("case", [Case(n, {"fused": True}) for n in ("SGD", "AdaGrad")], ids=str)
def test_sparse_gradients_are_unscaled_by_a_gradscaler(case: Case) -> None:
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
    (table, _), (plain, _) = embeddings(), embeddings()
    ours, theirs = case.ours([table]), case.torchs([plain], fused=False)
    gradient = next(sparse_gradients(0, coalesced=True))
    scaler.scale(torch.zeros((), device=DEVICE))  # a scaler insists on having scaled something
    table.grad, plain.grad = gradient * 1024.0, gradient
    scaler.step(ours)
    theirs.step()
    assert_equal_state(ours, theirs)
