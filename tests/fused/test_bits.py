"""The fused engine's results on a CPU: the rule in IEEE arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import ScratchOptimizer

from .. import ieee
from ..cases import (
    CASES,
    LINEAR,
    RICHEST,
    Case,
    assert_equal_state,
    each_of_two,
    each_optimizer,
    each_richest,
    leaves,
    parameters,
    same_bits,
    train,
    with_torchs_arithmetic,
)
from ..ieee import assert_step
from .common import FEW, KINDS, SIZES, errors, give, state_of, steps, tensors, values

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for dtype in (torch.float32, torch.float64) for case in CASES]
    + [(case, dtype) for dtype in (torch.bfloat16, torch.float16) for case in RICHEST],
    ids=str,
)
def test_fused_has_the_bits_of_ieee_arithmetic(case: Case, dtype: torch.dtype) -> None:
    # In half precision: computed in float32, rounded once where it is stored.
    many = case in RICHEST and dtype != torch.float64
    steps(case.ours(tensors(*(SIZES if many else FEW), dtype=dtype), fused=True), 4)


@with_torchs_arithmetic
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.optimizer in LINEAR], ids=str)
def test_fused_sgd_has_the_bits_of_torchs_loop(case: Case, dtype: torch.dtype) -> None:
    ours = case.ours([*parameters(dtype), *tensors(*SIZES, dtype=dtype)], fused=True)
    torchs = case.torchs([*parameters(dtype), *tensors(*SIZES, dtype=dtype)])
    for step in train(ours, torchs, steps=range(30)):
        if step in (0, 1, 29):
            assert_equal_state(ours, torchs, step)


@pytest.fixture
def correct_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own square root on a CPU is not rounded correctly."""
    monkeypatch.setattr(Tensor, "sqrt", ieee.sqrt)
    monkeypatch.setattr(Tensor, "sqrt_", lambda t: t.copy_(ieee.sqrt(t)))


@with_torchs_arithmetic
@pytest.mark.usefixtures("correct_roots")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.optimizer not in LINEAR], ids=str)
def test_fused_has_the_bits_of_a_loop_with_correct_roots(case: Case, dtype: torch.dtype) -> None:
    ours = case.ours(parameters(dtype), fused=True)
    loop = case.ours(parameters(dtype), foreach=False)
    for step in train(ours, loop, steps=range(10)):
        assert_equal_state(ours, loop, step)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_richest
@pytest.mark.parametrize("late", [False, True], ids=["one count", "several counts"])
def test_fused_has_the_same_bits_for_any_number_of_threads(
    case: Case, late: bool, threads: Callable[[int], None]
) -> None:
    sizes = (1, 100_003, 63, 0, 4097, 130_001, 5, 1000)  # so many that there is work for seven

    def run(count: int) -> ScratchOptimizer:
        threads(count)
        ours = case.ours(tensors(*sizes), fused=True)
        for step in range(3):
            give(ours, step)
            if late and step == 0:
                leaves(ours)[1].grad = None  # then rows have numbers of their own
            ours.step()
        return ours

    alone = run(1)
    for count in (2, 3, 7):
        assert_equal_state(run(count), alone, f"{count} threads")


def cut(whole: Tensor, sizes: list[int]) -> list[Tensor]:
    ends = accumulate([0, *sizes])
    return [whole[a:b].clone() for a, b in pairwise(ends)]


CUTS = {"large first": [5000, 1, 0, 77, 64, 3], "small": [5] * 1029, "odd": [1715] * 3}


@each_richest
@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("backwards", [False, True])
def test_fused_has_the_same_bits_for_any_cut_and_order(
    case: Case, sizes: list[int], backwards: bool
) -> None:
    start = values(5145, seed=0)
    whole = case.ours([start.clone().requires_grad_()], fused=True)
    params = [p.requires_grad_() for p in cut(start, sizes)]
    pieces = case.ours(params[::-1] if backwards else params, fused=True)
    for step in range(3):
        give(whole, step)
        (p,) = leaves(whole)
        assert p.grad is not None
        for q, g in zip(params, cut(p.grad, sizes), strict=True):
            q.grad = g
        whole.step()
        pieces.step()
    assert same_bits(torch.cat([q.detach() for q in params]), p)
    for name, value in state_of(whole, p).items():
        assert same_bits(torch.cat([pieces.state[q][name] for q in params]), value)


@each_optimizer
@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 300])
def test_fused_moves_each_of_many_equal_shapes_by_its_own_gradient(case: Case, count: int) -> None:
    ours = case.ours(tensors(*[7] * count), fused=True)
    together = case.ours([torch.stack([p.detach() for p in leaves(ours)])], fused=True)
    (all_of_them,) = leaves(together)
    for step in range(2):
        give(ours, step)
        grads = [p.grad for p in leaves(ours) if p.grad is not None]
        all_of_them.grad = torch.stack(grads)
        assert_step(together)
        ours.step()
    for p, expected in zip(leaves(ours), all_of_them, strict=True):
        assert same_bits(p, expected)
    for name, value in state_of(together, all_of_them).items():
        for p, expected in zip(leaves(ours), value, strict=True):
            assert same_bits(ours.state[p][name], expected)


@each_richest
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fused_is_as_accurate_as_torchs_fused_kernels(case: Case, dtype: torch.dtype) -> None:
    mine = errors(lambda p: case.ours(p, fused=True), case, dtype)
    # torch has no fused RMSprop: its loop instead.
    has_fused = case.optimizer != "RMSProp"
    engine: dict[str, Any] = {"foreach": None, "fused": True} if has_fused else {}
    theirs = errors(lambda p: case.torchs(p, **engine), case, dtype)
    if theirs.isnan().any():  # in float16 RMSprop's ε is zero: any result is better
        theirs.fill_(1)
    # A few units in the last place of a number near 1: luck decides them either way.
    assert (mine <= theirs * 1.1 + 4 * torch.finfo(dtype).eps).all(), (mine, theirs)


@each_richest
def test_fused_groups_may_mix_dtypes(case: Case) -> None:
    params = [values(n, seed=n, dtype=kind) for n in (3, 200) for kind in KINDS]
    steps(case.ours([p.requires_grad_() for p in params], fused=True), 3)


MIXED = ("Momentum", "RMSProp", "Adam")  # all operations, in a third of the kernels
MIXTURES = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.bfloat16, torch.float32),
    (torch.float64, torch.float32),
]


@pytest.mark.parametrize("case", [c for c in RICHEST if c.optimizer in MIXED], ids=str)
@pytest.mark.parametrize(
    ("dtype", "of_state", "some"),
    [(*both, False) for both in MIXTURES] + [(*MIXTURES[0], True)],
    ids=str,
)
def test_fused_state_may_have_another_dtype(
    case: Case, dtype: torch.dtype, of_state: torch.dtype, some: bool
) -> None:
    ours = case.ours(tensors(7, 100, dtype=dtype), fused=True)
    steps(ours, 1)
    for p in leaves(ours):
        for name, value in list(state_of(ours, p).items())[: 1 if some else None]:
            ours.state[p][name] = value.to(of_state)
    steps(ours, 3, start=1)
    kept = [value.dtype for p in leaves(ours) for value in state_of(ours, p).values()]
    assert of_state in kept


@each_of_two
def test_fused_gradients_may_have_another_dtype(case: Case) -> None:
    params = tensors(7, 100, dtype=torch.bfloat16)
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("this torch ties a gradient's dtype to its parameter's")
    ours = case.ours(params, fused=True)
    for step in range(3):
        for i, p in enumerate(params):
            p.grad_dtype = torch.float32
            p.grad = values(*p.shape, seed=10 * step + i)
        assert_step(ours)
