"""What two processes do together; each of them runs every function of `SCENARIOS`, in turn."""

from __future__ import annotations

import copy
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from .cases import PAIRS, Case, small_net

WORLD = 2
IMAGES = torch.linspace(-1, 1, 16 * 6).view(16, 6)
LABELS = torch.arange(16) % 3
Optimizer = torch.optim.Optimizer


def net() -> nn.Sequential:
    """Its first axes, along which it is sharded, are odd: the ranks hold unequal parts."""
    return small_net(6, 33, 3)


def my_part(batch: Tensor) -> Tensor:
    return batch.chunk(WORLD)[dist.get_rank()]


def train(model: nn.Module, optimizer: Optimizer, *, alone: bool = False, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        images, labels = (IMAGES, LABELS) if alone else (my_part(IMAGES), my_part(LABELS))
        cross_entropy(model(images), labels).backward()
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_alike(model: nn.Module, other: nn.Module, *, exact: bool) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        if exact:
            assert torch.equal(whole(p), whole(q))
        else:  # a mean of two means of half a batch is rounded otherwise than the mean of all
            torch.testing.assert_close(whole(p), whole(q), rtol=1e-4, atol=1e-5)


def single(case: Case, steps: int = 5) -> nn.Module:
    model = net()
    train(model, case.ours(model.parameters()), alone=True, steps=steps)
    return model


def data_parallel(case: Case) -> None:
    twins = [DistributedDataParallel(net()) for _ in range(2)]
    train(twins[0], case.ours(twins[0].parameters()))
    train(twins[1], case.torchs(twins[1].parameters()))
    assert_alike(*twins, exact=True)
    assert_alike(twins[0], single(case), exact=False)


def sharded_state(case: Case) -> None:
    ours, theirs, defaults = PAIRS[case.optimizer]
    twins = [DistributedDataParallel(net()) for _ in range(2)]
    for model, kind, options in zip(twins, (ours, theirs), ({}, defaults), strict=True):
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), optimizer_class=kind, lr=0.01, **options
        )
        train(model, optimizer)
        optimizer.consolidate_state_dict()
    assert_alike(*twins, exact=True)


def sharded(case: Case) -> nn.Module:
    model = net()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    return model


def fully_sharded(case: Case) -> None:
    expected = single(case)
    torchs = sharded(case)
    train(torchs, case.torchs(torchs.parameters()))
    for options in ({"foreach": False}, {"foreach": True}, {}):
        model = sharded(case)
        optimizer = case.ours(model.parameters(), **options)
        train(model, optimizer)
        assert_alike(model, torchs, exact=True)
        assert_alike(model, expected, exact=False)
        for state in optimizer.state.values():
            assert all(isinstance(t, DTensor) for name, t in state.items() if name != "step")


def gradients_as_summands(case: Case) -> None:
    """Sharded parameters whose gradients are summands, in the middle of a run of torch's."""
    mesh = init_device_mesh("cpu", (WORLD,))
    start = distribute_tensor(torch.linspace(-1, 1, 18).view(3, 6), mesh, [Shard(0)])
    images = distribute_tensor(IMAGES, mesh, [Shard(0)])
    p, q = (nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = case.ours([p]), case.torchs([q])
    for step in range(6):
        if step == 3:
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for weight, optimizer in ((p, ours), (q, theirs)):
            optimizer.zero_grad()
            (images @ weight.t()).square().mean().backward()
            assert isinstance(weight.grad, DTensor)
            assert weight.grad.placements[0].is_partial()
            optimizer.step()
        # torch's momentum adds up what has decayed, ours lets decay what has been added up.
        torch.testing.assert_close(whole(p), whole(q))


def fully_sharded_and_fused(case: Case) -> None:
    model = sharded(case)
    train(model, case.ours(model.parameters(), fused=True))
    assert_alike(model, single(case), exact=False)


def checkpointed(case: Case) -> None:
    """Two processes save, one loads, goes on and saves, and two load again."""
    model = sharded(case)
    optimizer = case.ours(model.parameters())
    train(model, optimizer, steps=3)
    with tempfile.TemporaryDirectory() as mine:
        places: list[Any] = [mine]
        dist.broadcast_object_list(places, src=0)
        first, second = Path(places[0], "two"), Path(places[0], "one")
        save(entirely(model, optimizer), checkpoint_id=first)

        alone = net()
        following = case.ours(alone.parameters(), lr=0.5)  # the checkpoint knows better
        take_over(alone, following, first, no_dist=True)
        train(alone, following, alone=True, steps=2)
        assert_alike(alone, single(case), exact=False)

        if dist.get_rank() == 0:
            save(entirely(alone, following), checkpoint_id=second, no_dist=True)
        dist.barrier()
        again = sharded(case)
        resumed = case.ours(again.parameters(), lr=0.5)
        take_over(again, resumed, second)
        assert_alike(again, alone, exact=True)
        train(again, resumed, steps=2)
        assert_alike(again, single(case, steps=7), exact=False)
        dist.barrier()


def entirely(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer}


def take_over(
    model: nn.Module, optimizer: Optimizer, place: Path, *, no_dist: bool = False
) -> None:
    state = entirely(model, optimizer)
    load(state, checkpoint_id=place, no_dist=no_dist)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=copy.copy(state["model"]),
        optim_state_dict=state["optimizer"],
    )


SCENARIOS: dict[str, tuple[Callable[[Case], None], Case]] = {
    f"{scenario.__name__}-{name}": (scenario, Case(name, {"lr": 0.01}))
    for scenario in (
        data_parallel,
        sharded_state,
        fully_sharded,
        gradients_as_summands,
        fully_sharded_and_fused,
        checkpointed,
    )
    for name in PAIRS
}


def main(rank: int, rendezvous: str, results: Any) -> None:
    """One of the processes. What it found goes into `results`, by scenario and rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    for name, (scenario, case) in SCENARIOS.items():
        try:
            scenario(case)
            results[name, rank] = "passed"
        except Exception:
            results[name, rank] = traceback.format_exc()
        dist.barrier()
    dist.destroy_process_group()
