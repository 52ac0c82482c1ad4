"""A pair of runs, ours and torch's: what they share, what is measured, and how they differ."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.common.data import Digits
from benchmarks.common.nets import build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RunRecorder, write_json
from benchmarks.common.training import CapturedStep, Step, evaluate, shuffled, train
from benchmarks.mnist.pair import TrainConfig, TrainingRun, batches, train_pair
from tests.benchmarks.cuda_graphs import Graph
from torch_scratch_optim import ScratchAdam

CONFIG = TrainConfig("relu", "adam", 0.001, epochs=2, batch_size=64, depth=2, width=16)


def runs_of(config: TrainConfig, digits: Digits, out: Path) -> dict[str, dict[str, Any]]:
    train_pair(config, digits, out)
    return {
        name: json.loads((config.directory(out, name) / "run.json").read_text())
        for name in config.implementations()
    }


def flaw(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Make our Adam step further than it was told."""

    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr * factor)

    flawed = dataclasses.replace(OPTIMIZERS["adam"], scratch=make)
    monkeypatch.setitem(OPTIMIZERS, "adam", flawed)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["default", "loop", "foreach"])
def test_runs_are_equal_bit_for_bit(
    optimizer: str, engine: str, digits: Digits, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        CONFIG, optimizer=optimizer, lr=OPTIMIZERS[optimizer].lr, engine=engine
    )
    runs = runs_of(config, digits, tmp_path)
    assert runs["scratch"]["comparison"] == {"max_abs_loss_difference": 0, "parameters_equal": True}
    assert runs["scratch"]["curves"]["epochs"] == runs["torch"]["curves"]["epochs"]
    assert runs["scratch"]["train_loss"] < runs["scratch"]["curves"]["epochs"][0]["train_loss"]


def test_runs_that_differ_are_told_apart(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaw(monkeypatch, 1.0001)
    comparison = runs_of(CONFIG, digits, tmp_path)["scratch"]["comparison"]
    assert 0 < comparison["max_abs_loss_difference"] < 0.01
    assert not comparison["parameters_equal"]


def test_a_run_that_diverges_alone_is_not_called_equal(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaw(monkeypatch, math.inf)
    runs = runs_of(CONFIG, digits, tmp_path)
    assert runs["scratch"]["diverged"]
    assert not runs["torch"]["diverged"]
    assert runs["scratch"]["comparison"] == {
        "max_abs_loss_difference": None,
        "parameters_equal": False,
    }


def test_runs_that_diverge_together_are_equal(digits: Digits, tmp_path: Path) -> None:
    runs = runs_of(dataclasses.replace(CONFIG, optimizer="sgd", lr=1e30), digits, tmp_path)
    for run in runs.values():
        assert run["diverged"]
        assert run["diverged_at_step"] == 2, "the first loss is that of the initial weights"
        assert run["train_loss"] is None
    assert runs["scratch"]["comparison"] == {"max_abs_loss_difference": 0, "parameters_equal": True}


def test_every_epoch_shows_each_image_once_in_a_new_order() -> None:
    labels = torch.zeros(300)
    first, second = (list(shuffled(labels, 64, 0, epoch)) for epoch in (1, 2))
    assert [len(batch) for batch in first] == [64, 64, 64, 64, 44]  # the last one is kept
    assert torch.cat(first).sort().values.tolist() == list(range(300))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_the_order_depends_on_the_seed_and_not_on_the_optimizer(digits: Digits) -> None:
    def order(**changes: Any) -> list[int]:
        images, labels = next(batches(dataclasses.replace(CONFIG, **changes), digits))
        return [*labels.tolist(), *images.sum(1).tolist()]

    assert order() == order(optimizer="sgd", net="sigmoid", lr=1.0)
    assert order() != order(seed=1)


def test_the_initial_weights_are_torchs_default_and_leave_its_generator_alone() -> None:
    torch.manual_seed(5)
    expected = [nn.Linear(784, 16), nn.Linear(16, 16), nn.Linear(16, 10)]
    torch.manual_seed(6)
    before = torch.get_rng_state()
    net = build_net("sigmoid", depth=2, width=16, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(weights_by_layer(net)) == ["layer_1", "layer_2", "output"]
    for layer, weight in zip(expected, weights_by_layer(net).values(), strict=True):
        assert torch.equal(layer.weight, weight)


def test_gradient_norms_and_updates_are_those_of_the_first_batch(
    digits: Digits, tmp_path: Path
) -> None:
    layers = runs_of(CONFIG, digits, tmp_path)["scratch"]["curves"]["layers"]
    net = build_net("relu", depth=2, width=16)
    images, labels = next(batches(CONFIG, digits))
    loss = cross_entropy(net(images), labels)
    names, weights = zip(*weights_by_layer(net).items(), strict=True)
    for name, weight, gradient in zip(
        names, weights, torch.autograd.grad(loss, weights), strict=True
    ):
        assert layers["gradient_norm"][name][0] == pytest.approx(gradient.norm().item(), rel=1e-5)
        # Adam's first step moves each weight by the learning rate, where there is a gradient.
        moved = 0.001 * (gradient != 0).sum().sqrt() / weight.norm()
        assert layers["update_to_weight"][name][0] == pytest.approx(moved.item(), rel=1e-2)
    assert layers["step"] == [0, 9]  # the first step and the last


def test_the_training_loss_is_the_mean_of_ten_steps(digits: Digits, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, batch_size=25)  # 12 steps in each of two epochs
    curve = runs_of(config, digits, tmp_path)["scratch"]["curves"]["training"]
    assert curve["step"] == [10, 20, 24]
    net = build_net("relu", depth=2, width=16)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    losses = []
    for images, labels in batches(config, digits):
        optimizer.zero_grad()
        loss = cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means = [sum(part) / len(part) for part in (losses[:10], losses[10:20], losses[20:])]
    assert curve["loss"] == pytest.approx(means)


def test_evaluation_weighs_every_image_alike(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build_net("relu", depth=1, width=16)
    whole = evaluate(net, digits.train_images, digits.train_labels)
    monkeypatch.setattr("benchmarks.common.training.EVALUATION_BATCH", 7)
    assert evaluate(net, digits.train_images, digits.train_labels) == pytest.approx(whole)
    scores = net(digits.train_images)
    assert whole[0] == pytest.approx(cross_entropy(scores, digits.train_labels).item())
    assert whole[1] == (scores.argmax(1) == digits.train_labels).double().mean().item()


def test_each_side_has_an_engine_of_its_own(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spy(name: str) -> Any:
        @functools.wraps(torch.optim.Adam)
        def make(parameters: Any, **options: Any) -> torch.optim.Optimizer:
            seen[name] = options
            return torch.optim.Adam(parameters, **options)

        return make

    spied = dataclasses.replace(OPTIMIZERS["adam"], scratch=spy("ours"), reference=spy("torch"))
    monkeypatch.setitem(OPTIMIZERS, "adam", spied)
    train_pair(dataclasses.replace(CONFIG, engine="foreach"), digits, tmp_path)
    assert seen == {
        "ours": {"lr": 0.001, "foreach": True},
        "torch": {"lr": 0.001, "foreach": False, "fused": False},
    }


@pytest.mark.parametrize(
    ("make", "updates"),
    [
        (torch.optim.Adam, 120),
        # The eager ones and that which is captured: a replayed update calls no hooks.
        (functools.partial(ScratchAdam, capturable=True), 24 + 3 + 2 + 1),
    ],
    ids=["eager update", "captured update"],
)
def test_a_captured_step_trains_as_an_eager_one_does(
    make: Any, updates: int, digits: Digits, graphs: list[Graph]
) -> None:
    config = dataclasses.replace(CONFIG, epochs=24)  # of four full batches and a smaller one
    outcomes = []
    for kind in (Step, functools.partial(CapturedStep, eager_every=50)):
        net = build_net("relu", depth=2, width=16)
        optimizer = make(net.parameters(), lr=0.001)
        hook = Mock(return_value=None)
        optimizer.register_step_post_hook(hook)
        losses, norms = [], []
        for loss in train(kind(net, optimizer), batches(config, digits)):
            losses.append(loss)
            norms.append([p.grad.norm().item() for p in net.parameters() if p.grad is not None])
        outcomes.append((torch.stack(losses).tolist(), norms, [*net.parameters()]))
    eager, captured = outcomes
    (graph,) = graphs
    assert graph.replays == 120 - 24 - 3 - 2  # odd batches, the first steps, and numbers 50 and 100
    assert hook.call_count == updates
    assert eager[0] == captured[0]
    assert eager[1] == captured[1]
    assert all(torch.equal(a, b) for a, b in zip(eager[2], captured[2], strict=True))


def test_a_first_step_that_compiles_is_not_typical_where_few_are_timed(
    digits: Digits, tmp_path: Path
) -> None:
    recorder = RunRecorder(tmp_path)
    run = TrainingRun(CONFIG, "scratch", digits, iter(()), recorder)
    run.end_epoch(0)
    run._timed_every = 10  # as on a GPU
    run._seconds, run._gradient_seconds, run._update_seconds = [9.0, 1.5], [1.0, 1.0], [8.0, 0.5]
    result = run.result(None)
    recorder.abandon()
    assert result["optimizer_ms_per_step"] == 500
    assert result["optimizer_share"] == pytest.approx(0.5 / 1.5)


def test_a_smaller_batch_is_not_what_is_captured(digits: Digits, graphs: list[Graph]) -> None:
    net = build_net("relu", depth=1, width=4)
    step = CapturedStep(net, ScratchAdam(net.parameters(), capturable=True))
    for size in (50, 20, 50, 20, 50, 50):  # the fourth would be captured
        step(digits.train_images[:size], digits.train_labels[:size])
    assert [graph.replays for graph in graphs] == [2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_captured_pair_is_compared_with_torchs_ordinary_step(
    optimizer: str, digits: Digits, graphs: list[Graph], tmp_path: Path
) -> None:
    plain = dataclasses.replace(CONFIG, optimizer=optimizer, lr=OPTIMIZERS[optimizer].lr, epochs=4)
    eager = runs_of(plain, digits, tmp_path / "eager")
    captured = runs_of(dataclasses.replace(plain, capture=True), digits, tmp_path / "captured")
    assert [graph.replays for graph in graphs] == [20 - 4 - 3] * 2
    assert captured["torch"]["curves"]["epochs"] == eager["torch"]["curves"]["epochs"]
    # On a CPU ours has scalars that are tensors, which enter through other operations.
    assert captured["scratch"]["comparison"]["max_abs_loss_difference"] < 1e-5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("capture", [False, True])
def test_only_ours_is_capturable_and_only_if_steps_are_captured(
    optimizer: str, capture: bool
) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer, capture=capture)
    parameters = [nn.Parameter(torch.ones(1))]
    for implementation, expected in (("scratch", capture), ("torch", False)):
        (group,) = config.make_optimizer(implementation, parameters).param_groups
        assert group.get("capturable", False) is expected


def test_an_interrupted_pair_leaves_no_run(digits: Digits, tmp_path: Path) -> None:
    def interrupt(steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_pair(CONFIG, digits, tmp_path, interrupt)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    write_json(path, {"loss": math.nan, "steps": [1, math.inf]})
    assert json.loads(path.read_text()) == {"loss": None, "steps": [1, None]}
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json(path, {"loss": object()})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
