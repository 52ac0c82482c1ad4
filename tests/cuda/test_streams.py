"""Steps run on the current stream, in any thread, and wait for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from ..cases import (
    DEVICE,
    ENGINES,
    Case,
    assert_equal_state,
    each_of_two,
    each_optimizer,
    leaves,
    parameters,
    train,
)
from ..fused.common import tensors

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")

every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
LONG = 100_000_000  # cycles of a GPU: some 50 ms


@every_engine
@each_of_two
def test_step_runs_on_the_current_stream(case: Case, engine: dict[str, Any]) -> None:
    ours, expected = case.ours(tensors(1000, 3), **engine), case.ours(tensors(1000, 3), **engine)
    for twin in (ours, expected):
        for p in leaves(twin):
            p.grad = torch.zeros_like(p)
        twin.step()  # compiles and makes the state
        for p in leaves(twin):
            assert p.grad is not None
            p.grad.fill_(float("nan"))
    for p in leaves(expected):
        assert p.grad is not None
        p.grad.fill_(1.0)
    expected.step()
    torch.cuda.synchronize()
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        torch.cuda._sleep(LONG)
        for p in leaves(ours):
            assert p.grad is not None
            p.grad.fill_(1.0)  # on another stream a step would read what is not there yet
        ours.step()
    aside.synchronize()
    assert_equal_state(ours, expected)


@every_engine
@each_of_two
def test_step_in_a_thread_that_has_never_seen_the_device(
    case: Case, engine: dict[str, Any]
) -> None:
    def work(optimizer: Optimizer) -> None:
        for _ in train(optimizer, steps=range(3)):
            pass

    threaded = [case.ours(parameters(seed=seed), **engine) for seed in range(3)]
    alone = [case.ours(parameters(seed=seed), **engine) for seed in range(3)]
    threads = [threading.Thread(target=work, args=(optimizer,)) for optimizer in threaded]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(threaded, alone, strict=True):
        work(theirs)
        assert_equal_state(mine, theirs)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Whatever makes the host wait for the device raises a RuntimeError."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@each_optimizer
def test_fused_step_waits_for_nothing(case: Case) -> None:
    ours = case.ours(tensors(1000, 3), fused=True)
    for p in leaves(ours):
        p.grad = torch.ones_like(p)
    for _ in range(2):
        ours.step()
    with no_synchronisation():
        ours.step()


@each_optimizer
def test_fused_step_of_a_gradscaler_waits_for_nothing(case: Case) -> None:
    ours = case.ours(tensors(1000, 3), fused=True)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
    scale = scaler.scale(torch.ones((), device=DEVICE))
    for p in leaves(ours):
        p.grad = torch.ones_like(p) * scale
    for step in range(3):
        if step < 2:
            scaler.step(ours)
        else:
            with no_synchronisation():
                scaler.step(ours)
        scaler.update(1024.0)


@each_of_two
def test_guard_notices_a_step_that_waits(case: Case) -> None:
    lr = torch.tensor(0.1, device=DEVICE)
    ours = case.ours(tensors(3), lr=lr)  # which the host has to read
    for p in leaves(ours):
        p.grad = torch.ones_like(p)
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        ours.step()
