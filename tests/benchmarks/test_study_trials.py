"""Single and stacked trials: what is measured, and that both give the same."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from benchmarks.common.data import Digits
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.training import CapturedStep, evaluate
from benchmarks.study import stacked as stacked_module
from benchmarks.study import trial as trial_module
from benchmarks.study.protocol import TUNED
from benchmarks.study.stacked import stacked_optimizer, train_stack
from benchmarks.study.trial import (
    FINAL,
    SCHEDULES,
    SEARCH,
    TIMING,
    History,
    Settings,
    Split,
    Timer,
    Trial,
    initial_net,
    split,
    train,
)  # fmt: skip
from torch_scratch_optim import ScratchSGD, engines

from .cuda_graphs import Graph

pytestmark = pytest.mark.slow

SETTINGS = Settings(
    "relu", "adam", 0.01, epochs=2, batch_size=50, depth=2, width=8, dataset="synthetic",
    train_size=240, validation_size=60,
)  # fmt: skip
OPTIONS = {  # of four trials
    "weight_decay": (1e-6, 1e-4, 1e-2, 0.1),
    "momentum": (0.0, 0.5, 0.9, 0.99),
    "beta2": (0.9, 0.99, 0.999, 0.9999),
    "eps": (1e-10, 1e-8, 1e-4, 1e-3),
}
RATES = (0.0001, 0.001, 0.01, 0.1)


@pytest.fixture(scope="module")
def data(digits: Digits) -> Split:
    return split(digits, 60)


def trials(optimizer: str, phase: str = FINAL, **changes: Any) -> list[Trial]:
    """Trials of two seeds that differ in whatever the optimizer has."""
    return [
        Trial(phase, "all", replace(
            SETTINGS, optimizer=optimizer, lr=rate, seed=k % 2,
            options={name: OPTIONS[name][k] for name in TUNED[optimizer]}, **changes,
        ))
        for k, rate in enumerate(RATES)
    ]  # fmt: skip


def test_the_last_training_images_validate_and_no_image_is_in_two_parts(digits: Digits) -> None:
    data = split(digits, 60)
    assert torch.equal(torch.cat([data.images, data.validation_images]), digits.train_images)
    assert torch.equal(torch.cat([data.labels, data.validation_labels]), digits.train_labels)
    assert len(data.validation_labels) == 60
    assert data.test_images is digits.test_images


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("net", ["sigmoid", "relu"])
@pytest.mark.parametrize("optimizer", TUNED)
def test_each_trial_of_a_stack_equals_its_run_alone(
    optimizer: str, net: str, schedule: str, data: Split, double: None
) -> None:
    # Stacks of matrices are multiplied in another order of sums, and a rule with tensors for
    # numbers rounds after each operation. In double precision that is some 1e-16 a step, which
    # training with large rates magnifies; a wrong learning rate would show in the first digits.
    exact = Split(*(t.double() if t.is_floating_point() else t for t in vars(data).values()))
    alike = trials(optimizer, net=net, schedule=schedule)
    for trial, stacked in zip(alike, train_stack(alike, exact), strict=True):
        alone = train(trial, exact)
        assert stacked.pop("seconds") is None
        del alone["seconds"]
        assert [*_numbers(stacked)] == pytest.approx([*_numbers(alone)], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("stacks", [False, True], ids=["alone", "stacked"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", TUNED)
def test_a_trial_whose_steps_are_captured_equals_the_eager_one(
    optimizer: str,
    schedule: str,
    stacks: bool,
    data: Split,
    double: None,
    graphs: list[Graph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = Split(*(t.double() if t.is_floating_point() else t for t in vars(data).values()))
    alike = trials(optimizer, net="sigmoid", schedule=schedule, epochs=3)
    eager = [train(trial, exact) for trial in alike]
    for module in (trial_module, stacked_module):
        monkeypatch.setattr(module, "step_for", lambda device: CapturedStep)
    captured = train_stack(alike, exact) if stacks else [train(trial, exact) for trial in alike]
    # Of three times four full batches and a smaller one, the first three steps are eager.
    assert [graph.replays for graph in graphs] == [3 * 4 - 3] * (1 if stacks else 4)
    for mine, theirs in zip(captured, eager, strict=True):
        # As above: scalars are tensors, so there are other roundings.
        assert [*_numbers(mine)] == pytest.approx([*_numbers(theirs)], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("optimizer", TUNED)
def test_captured_trials_may_differ_in_the_learning_rate_alone_and_fill_several_blocks(
    optimizer: str, data: Split, double: None, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Split(*(t.double() if t.is_floating_point() else t for t in vars(data).values()))
    alike = [
        replace(trial, settings=replace(trial.settings, options={})) for trial in trials(optimizer)
    ]
    eager = [train(trial, exact)["test_loss"] for trial in alike]
    net = initial_net(alike[0].settings)
    monkeypatch.setattr(engines, "CPU_BLOCK", 3 * sum(p.numel() for p in net.parameters()))
    monkeypatch.setattr(trial_module, "step_for", lambda device: CapturedStep)
    monkeypatch.setattr(stacked_module, "step_for", lambda device: CapturedStep)
    captured = [result["test_loss"] for result in train_stack(alike, exact)]
    assert len(graphs) == 1
    assert captured == pytest.approx(eager, rel=1e-6)  # as above


def test_what_captures_a_step_is_not_timed(
    data: Split, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = trials("adam", TIMING)[:1]

    def seconds() -> float:
        """By a clock of which the first four steps take a thousand ticks each."""
        clock, steps = itertools.count(), itertools.count(1)
        monkeypatch.setattr(trial_module, "time", Mock(perf_counter=lambda: next(clock)))

        def on_step() -> None:
            if next(steps) <= 4:
                for _ in range(1000):
                    next(clock)

        return float(train(trial, data, on_step)["seconds"])

    assert seconds() > 4000
    monkeypatch.setattr(trial_module, "step_for", lambda device: CapturedStep)
    assert seconds() < 1000


def _numbers(content: Any) -> Iterator[float]:
    """All numbers of a result, but for the clock's, which a stack has not."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name != "seconds":
                yield from _numbers(value)
    elif isinstance(content, list):
        for value in content:
            yield from _numbers(value)
    else:
        yield math.nan if content is None else float(content)


def test_in_single_precision_a_stack_agrees_as_far_as_that_reaches(data: Split) -> None:
    alike = trials("adam")[:3]
    for trial, stacked in zip(alike, train_stack(alike, data), strict=True):
        # As above, with roundings of 6e-8.
        assert stacked["test_loss"] == pytest.approx(train(trial, data)["test_loss"], rel=1e-4)


@pytest.mark.parametrize("block", [1, 45, engines.CPU_BLOCK])  # one, three, or all trials at a time
@pytest.mark.parametrize("optimizer", TUNED)
def test_a_step_of_a_stack_equals_the_steps_of_its_trials(
    optimizer: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CPU_BLOCK", block)
    settings = [trial.settings for trial in trials(optimizer)]
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack = start.expand(4, 3, 5).clone().requires_grad_()
    bias = start[0].expand(4, 5).clone().requires_grad_()
    together = stacked_optimizer([stack, bias], settings)
    alone = [[start.clone().requires_grad_(), start[0].clone().requires_grad_()] for _ in settings]
    steppers = [
        OPTIMIZERS[optimizer].scratch(parameters, **one.keywords())
        for parameters, one in zip(alone, settings, strict=True)
    ]
    for step in range(5):
        gradient = torch.randn(
            3, 5, generator=torch.Generator().manual_seed(step + 1), dtype=torch.float64
        )
        stack.grad, bias.grad = gradient.expand(4, 3, 5).clone(), gradient[0].expand(4, 5).clone()
        together.step()
        for parameters, stepper in zip(alone, steppers, strict=True):
            parameters[0].grad, parameters[1].grad = gradient.clone(), gradient[0].clone()
            stepper.step()
    for k, (weight, own_bias) in enumerate(alone):
        # In double precision: only the rounding of single operations is left.
        torch.testing.assert_close(stack[k], weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bias[k], own_bias, rtol=1e-12, atol=1e-12)


def test_a_trial_that_diverges_ends_and_leaves_its_stack_alone(data: Split) -> None:
    wild = replace(SETTINGS, optimizer="sgd", lr=1e30, options={})
    calm = replace(wild, lr=0.01)
    alike = [Trial(FINAL, "lr", settings) for settings in (wild, calm)]
    stacked = train_stack(alike, data)
    for trial, result in zip(alike, stacked, strict=True):
        alone = train(trial, data)
        for name in ("diverged", "diverged_at_step", "steps"):
            assert result[name] == alone[name]
    assert [result["diverged"] for result in stacked] == [True, False]
    assert stacked[0]["steps"] < stacked[1]["steps"]
    assert math.isfinite(stacked[1]["test_loss"])


def test_trials_that_differ_in_more_than_hyper_parameters_are_not_stacked(data: Split) -> None:
    with pytest.raises(ValueError, match="nothing but their seeds and hyper-parameters"):
        train_stack([Trial(SEARCH, "lr", replace(SETTINGS, epochs=n)) for n in (1, 2)], data)


def test_timing_trials_are_not_stacked(data: Split) -> None:
    with pytest.raises(ValueError, match="stacked trials"):
        train_stack([Trial(TIMING, "lr", replace(SETTINGS, seed=seed)) for seed in (1, 2)], data)


def test_the_same_seed_gives_the_same_start_and_order_to_every_optimizer(data: Split) -> None:
    # With a rate of almost nothing, no optimizer has an effect yet.
    losses = {
        optimizer: train(
            Trial(FINAL, "lr", replace(SETTINGS, optimizer=optimizer, lr=1e-30)), data
        )["curves"]["train_loss"][1:]
        for optimizer in TUNED
    }
    assert all(found == losses["sgd"] for found in losses.values())
    other = train(Trial(FINAL, "lr", replace(SETTINGS, lr=1e-30, seed=1)), data)
    assert other["curves"]["train_loss"][1:] != losses["sgd"]


@pytest.mark.parametrize("phase", [SEARCH, TIMING])
def test_only_finals_use_the_test_set(phase: str, data: Split) -> None:
    unseen = replace(data, test_images=torch.full_like(data.test_images, math.nan))
    trial = Trial(phase, "lr", SETTINGS)
    searched = train(trial, unseen)
    assert math.isnan(searched["test_loss"])
    assert math.isnan(searched["test_accuracy"])
    assert train(trial, data)["curves"]["validation_loss"] == searched["curves"]["validation_loss"]
    assert train(Trial(FINAL, "lr", SETTINGS), data)["test_accuracy"] > 0


def test_a_timing_trial_measures_the_seconds_of_its_final(
    data: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.study.trial.TARGETS", (0.3,))
    settings = replace(SETTINGS, epochs=6)
    final, timing = (train(Trial(phase, "lr", settings), data) for phase in (FINAL, TIMING))
    for curve in ("step", "train_loss", "validation_accuracy"):
        assert timing["curves"][curve][1:] == final["curves"][curve][1:]
    assert timing["targets"]["0.3"]["step"] == final["targets"]["0.3"]["step"] > 0
    assert 0 < timing["targets"]["0.3"]["seconds"] <= timing["seconds"]


def test_finals_are_evaluated_several_times_an_epoch(data: Split) -> None:
    result = train(Trial(FINAL, "lr", SETTINGS), data)
    curves = result["curves"]
    assert curves["step"] == [0, 2, 4, 5, 7, 9, 10]
    tested = [not math.isnan(one) for one in curves["test_accuracy"]]
    assert tested == [True, False, False, True, False, False, True]  # after each epoch
    assert curves["epoch"] == [0, 0.4, 0.8, 1, 1.4, 1.8, 2]
    assert all(len(values) == 7 for values in curves.values())
    norms = result["gradient_norms"]
    assert list(norms) == ["step", "layer_1", "layer_2", "output"]
    assert norms["step"] == curves["step"][1:]


def test_training_loss_is_the_mean_since_the_last_evaluation() -> None:
    history = History(Trial(FINAL, "lr", SETTINGS))
    history.add_evaluation(0, torch.tensor([]), 0.0, (2.0, 0.1), (2.0, 0.1))
    history.add_evaluation(2, torch.tensor([1.0, 3.0]), 0.5, (1.0, 0.5), (1.0, 0.5))
    assert math.isnan(history.curves["train_loss"][0])
    assert history.curves["train_loss"][1] == 2.0


def test_a_target_is_reached_once_and_a_miss_stays_in() -> None:
    history = History(Trial(FINAL, "lr", SETTINGS))
    for step, accuracy in ((0, 0.1), (2, 0.971), (4, 0.96), (5, 0.975)):
        evaluation = step / 10, (1.0, accuracy), (1.0, 0.5)
        history.add_evaluation(step, torch.ones(min(step, 1)), *evaluation)
    targets = history.result(0.5, (1.0, 0.9))["targets"]
    assert targets["0.97"] == {"step": 2, "epoch": 0.4, "seconds": 0.2}
    assert targets["0.98"] == {"step": None, "epoch": None, "seconds": None}


def test_a_timer_that_is_stopped_does_not_count() -> None:
    timer = Timer(torch.device("cpu"))
    timer.start()
    timer.stop()
    before = timer.seconds
    time.sleep(0.01)
    assert timer.seconds == before
    timer.start()
    timer.stop()
    assert timer.seconds > before


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1] * 10),
        ("step", [1] * 5 + [0.1] * 2 + [0.01] * 3),
        ("cosine", [(1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)]),
    ],
)
def test_schedules_move_the_learning_rate(
    schedule: str, shares: list[float], data: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = ScratchSGD.step

    def noted(self: Any, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(ScratchSGD, "step", noted)
    train(Trial(SEARCH, "lr", replace(SETTINGS, optimizer="sgd", schedule=schedule)), data)
    assert rates == pytest.approx([0.01 * share for share in shares])


def test_a_key_tells_apart_whatever_differs() -> None:
    trial = Trial(SEARCH, "lr", SETTINGS)
    others = [
        replace(trial, phase=FINAL), replace(trial, search_space="all"),
        *(replace(trial, settings=replace(SETTINGS, **change)) for change in (
            {"lr": 0.02}, {"options": {"eps": 1e-6}}, {"seed": 7}, {"schedule": "step"},
            {"dataset": "mnist"}, {"train_size": 250}, {"test_size": 50},
        )),
    ]  # fmt: skip
    assert len({trial.key, *(other.key for other in others)}) == len(others) + 1
    assert Trial(SEARCH, "lr", replace(SETTINGS)).key == trial.key
    assert replace(trial, search_space="all").run_key == trial.run_key
    json.dumps(trial.content(), allow_nan=False)


def test_a_net_of_the_study_is_the_net_of_the_other_benchmarks(data: Split) -> None:
    result = train(Trial(FINAL, "lr", replace(SETTINGS, lr=1e-30)), data)
    net = build_net("relu", 2, 8, SETTINGS.seed)
    loss, accuracy = evaluate(net, data.test_images, data.test_labels)
    assert (result["test_loss"], result["test_accuracy"]) == (loss, accuracy)
