"""CUDA graphs: capturable steps are captured once and replayed, alone and in a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from ..cases import DEVICE, IMAGES, LABELS, Case, each_optimizer, leaves, parameters, small_net

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")

each_capturable = pytest.mark.parametrize(
    "engine",
    [{"capturable": True}, {"capturable": True, "fused": True}],
    ids=["capturable", "capturable and fused"],
)


def assert_close(ours: Optimizer, theirs: Optimizer, rtol: float) -> None:
    """Equal up to rounding; a captured step counts on the device."""
    for p, q in zip(leaves(ours), leaves(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
        for name, value in theirs.state.get(q, {}).items():
            mine = ours.state[p][name]
            torch.testing.assert_close(mine, value, rtol=rtol, atol=rtol, check_device=False)


def warmed_up(step: Any, times: int = 3) -> None:
    """As torch asks before a capture: on another stream, so that everything lazy is done."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(aside)


@each_capturable
@each_optimizer
def test_graph_replays_what_an_eager_step_does(case: Case, engine: dict[str, Any]) -> None:
    captured = case.ours(parameters(torch.float64), **engine)
    plain = case.ours(parameters(torch.float64))
    gradients = [torch.ones_like(p) for p in leaves(captured)]
    for twin in (captured, plain):
        for p, gradient in zip(leaves(twin), gradients, strict=True):
            p.grad = gradient
    warmed_up(captured.step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        plain.step()
    for step in range(3):
        for gradient in gradients:
            gradient.fill_(2.0 + step)
        graph.replay()
        plain.step()
    # Numbers that are tensors enter by operations of their own.
    assert_close(captured, plain, rtol=1e-9)


@each_capturable
@pytest.mark.parametrize("case", [Case("SGD"), Case("Adam")], ids=str)
def test_graph_follows_a_learning_rate_that_is_a_tensor(case: Case, engine: dict[str, Any]) -> None:
    lr = torch.tensor(0.01, dtype=torch.float64, device=DEVICE)
    captured = case.ours(parameters(torch.float64), lr=lr, **engine)
    plain = case.ours(parameters(torch.float64), lr=0.01)
    for twin in (captured, plain):
        for p in leaves(twin):
            p.grad = torch.ones_like(p)
    warmed_up(captured.step, times=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    plain.step()
    for rate in (0.1, 0.03):
        lr.fill_(rate)
        plain.param_groups[0]["lr"] = rate
        graph.replay()
        plain.step()
    assert_close(captured, plain, rtol=1e-9)  # as above


@each_capturable
@each_optimizer
def test_graph_of_a_whole_training_step_trains_as_the_eager_one(
    case: Case, engine: dict[str, Any]
) -> None:
    def training_step(net: nn.Module, optimizer: Optimizer, images: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(net(images), LABELS).backward()
        optimizer.step()

    nets = small_net(), small_net()
    captured = case.ours(nets[0].parameters(), lr=0.01, **engine)
    eager = case.ours(nets[1].parameters(), lr=0.01)
    images = IMAGES.clone()
    warmed_up(lambda: training_step(nets[0], captured, images))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training_step(nets[0], captured, images)
    for _ in range(3):
        training_step(nets[1], eager, IMAGES)
    for step in range(4):
        images.copy_(IMAGES * (1.0 + step))
        graph.replay()
        training_step(nets[1], eager, IMAGES * (1.0 + step))
    # In float32; a graph may multiply matrices by another algorithm.
    assert_close(captured, eager, rtol=1e-3)


@each_optimizer
def test_graph_of_what_is_not_capturable_is_refused(case: Case) -> None:
    ours = case.ours(parameters())
    for p in leaves(ours):
        p.grad = torch.ones_like(p)
    if not ours.counts_steps:
        pytest.skip("it counts nothing that a graph would freeze")
    ours.step()
    graph, something = torch.cuda.CUDAGraph(), torch.ones(1, device=DEVICE)

    def capture() -> None:
        with torch.cuda.graph(graph):
            something.add_(1)  # of an empty graph torch warns
            ours.step()

    with pytest.raises(RuntimeError, match="param_groups' capturable is False"):
        capture()
