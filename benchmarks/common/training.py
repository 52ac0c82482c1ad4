"""Train one net: with our optimizer and, in lockstep with it, a twin with torch's.

Twins start from the same weights and see the same batches, so that whatever differs between them
comes from the optimizers. Nothing is plotted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import processes
from benchmarks.common.data import Digits
from benchmarks.common.drawn import seeded_generator
from benchmarks.common.nets import build_net
from benchmarks.common.optimizers import CONTENDERS
from benchmarks.common.record import RunRecorder
from benchmarks.common.trainee import EPOCH_TAGS, FINAL, SCRATCH, Plan, Trainee

TESTS_PER_EPOCH = 5  # looks at the test set, the one at the end of the epoch included

OnSteps = Callable[[int], None]


def train_pair(
    plan: Plan, digits: Digits, out: Path, on_steps: OnSteps = lambda steps: None
) -> None:
    """Train ours and, if the plan says so, torch's; leave run.json and events of both in `out`."""
    trainees = [_trainee(plan, name, digits, out) for name in plan.implementations()]
    try:
        for trainee in trainees:
            trainee.end_epoch(0, 0, digits)
        done = 0
        for epoch in range(1, plan.epochs + 1):
            done = _train_epoch(plan, trainees, digits, epoch, done, on_steps)
            for trainee in trainees:
                trainee.end_epoch(epoch, done, digits)
            if all(trainee.diverged_at_step is not None for trainee in trainees):
                break  # nothing comes back from NaN
        twin = compare(*trainees) if plan.reference else None
        # Ours last: its file completes the pair.
        for trainee in reversed(trainees):
            content = trainee.result(plan, digits, twin if trainee is trainees[0] else None)
            tags = [EPOCH_TAGS[name] for name in FINAL]
            trainee.recorder.finish(trainee.settings(plan, digits), tags, content)
    except BaseException:
        for trainee in trainees:
            trainee.recorder.abandon()
        raise


def _trainee(plan: Plan, implementation: str, digits: Digits, out: Path) -> Trainee:
    built = build_net(plan.net, plan.depth, plan.width, plan.seed).to(digits.train_images.device)
    net = processes.data_parallel(built)
    contender = CONTENDERS[plan.optimizer]
    if implementation == SCRATCH:
        optimizer = contender.make_scratch(net.parameters(), plan.lr, plan.foreach)
    else:
        optimizer = contender.make_reference(net.parameters(), plan.lr)
    steps = plan.epochs * plan.steps_per_epoch(len(digits.train_labels))
    return Trainee(
        implementation=implementation,
        net=net,
        optimizer=optimizer,
        recorder=RunRecorder(plan.directory(out, implementation)),
        losses=torch.full((steps,), math.nan, device=digits.train_images.device),
    )


def _train_epoch(
    plan: Plan,
    trainees: list[Trainee],
    digits: Digits,
    epoch: int,
    done: int,
    on_steps: OnSteps,
) -> int:
    timed_every = 10 if digits.train_images.is_cuda else 1
    steps = plan.steps_per_epoch(len(digits.train_labels))
    tested_every = math.ceil(steps / TESTS_PER_EPOCH)
    for number, indices in enumerate(batches(plan, epoch, digits.train_labels), start=1):
        mine = processes.my_part(indices)
        images, labels = digits.train_images[mine], digits.train_labels[mine]
        for trainee in trainees:
            trainee.step(done, images, labels, timed=done % timed_every == 0)
        done += 1
        if number % tested_every == 0 and number < steps:
            for trainee in trainees:
                trainee.test(done, digits)
        on_steps(1)
    return done


def batches(plan: Plan, epoch: int, labels: Tensor) -> Iterator[Tensor]:
    return shuffled(labels, plan.batch_size, plan.seed, epoch)


def shuffled(labels: Tensor, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The indices of each batch: an order that depends on the seed and the epoch alone."""
    generator = seeded_generator("batches", seed, epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    return iter(torch.split(order, batch_size))


def compare(ours: Trainee, theirs: Trainee) -> dict[str, Any]:
    """The largest difference of the twins' losses over all steps; two NaN count as equal."""
    a, b = ours.losses.double(), theirs.losses.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    equal = all(
        torch.allclose(p, q, rtol=0, atol=0, equal_nan=True)
        for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True)
    )
    return {"max_abs_loss_difference": difference, "parameters_equal": equal}
