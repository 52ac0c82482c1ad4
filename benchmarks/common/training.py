"""Train one net: with our optimizer and, in lockstep with it, a reference run with torch's.

Both start from the same weights and see the same batches, so that whatever differs between them
comes from the optimizers. Nothing is plotted here.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import processes
from benchmarks.common.data import Digits
from benchmarks.common.implementations import maker
from benchmarks.common.nets import build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RunRecorder
from benchmarks.common.synthetic import seeded_generator

SCRATCH, TORCH = "scratch", "torch"
DIRECTORIES = {SCRATCH: "ours", TORCH: "torch"}
LOSS_EVERY = 10  # steps that one point of the training loss is the mean of
LAYERS_EVERY = 50  # steps between two looks at the gradients and updates of the layers
EVALUATION_BATCH = 10_000

EPOCH_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "loss_gap": "generalization_gap/loss",
    "accuracy_gap": "generalization_gap/accuracy",
}
FINAL = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides how one pair of twins is trained, except for the data."""

    net: str
    optimizer: str
    lr: float
    epochs: int = 3
    batch_size: int = 128
    seed: int = 0
    depth: int = 5
    width: int = 128
    engine: str = "default"
    torch_engine: str = "loop"
    reference: bool = True

    def implementations(self) -> tuple[str, ...]:
        return (SCRATCH, TORCH) if self.reference else (SCRATCH,)

    def steps_per_epoch(self, images: int) -> int:
        return math.ceil(images / self.batch_size)  # the last batch of an epoch may be smaller

    def directory(self, out: Path, implementation: str) -> Path:
        return out / self.net / self.optimizer / DIRECTORIES[implementation]


@dataclass
class TrainingRun:
    """One net with its optimizer, and what is measured of them."""

    implementation: str
    net: nn.Module
    optimizer: torch.optim.Optimizer
    recorder: RunRecorder
    losses: Tensor  # of every step, on the device: reading one at each step would cost time
    loss_steps: list[int] = field(default_factory=list)
    loss_means: list[float] = field(default_factory=list)
    loss_times: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    test_steps: list[int] = field(default_factory=list)
    test_losses: list[float] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    layer_steps: list[int] = field(default_factory=list)
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    update_ratios: dict[str, list[float]] = field(default_factory=dict)
    gradient_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    diverged_at_step: int | None = None

    def step(self, number: int, images: Tensor, labels: Tensor, timed: bool) -> None:
        """One update. Forward and backward are timed apart from the optimizer's step."""
        began = self._clock(timed)
        self.optimizer.zero_grad()
        loss = cross_entropy(self.net(images), labels)
        loss.backward()
        has_gradient = self._clock(timed)

        is_last = number == len(self.losses) - 1
        look_at_layers = number % LAYERS_EVERY == 0 or is_last
        before = self._weights() if look_at_layers else {}

        begins_step = self._clock(timed)
        self.optimizer.step()
        if timed:
            self.gradient_seconds.append(has_gradient - began)
            self.step_seconds.append(self._clock(timed) - begins_step)

        self.losses[number] = loss.detach()
        if (number + 1) % LOSS_EVERY == 0 or is_last:
            self.loss_times.append(time.time())
        if look_at_layers:
            self._record_layers(number, before)

    def _clock(self, timed: bool) -> float:
        if timed and self.losses.is_cuda:
            torch.cuda.synchronize(self.losses.device)
        return time.perf_counter()

    def _weights(self) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in weights_by_layer(self.net).items()}

    @torch.no_grad()
    def _record_layers(self, number: int, before: dict[str, Tensor]) -> None:
        self.layer_steps.append(number)
        layers = weights_by_layer(self.net)
        gradients = [w.grad.norm() for w in layers.values() if w.grad is not None]
        updates = [(w - before[name]).norm() / before[name].norm() for name, w in layers.items()]
        norms, ratios = torch.stack([torch.stack(gradients), torch.stack(updates)]).tolist()
        for name, norm, ratio in zip(layers, norms, ratios, strict=True):
            self.gradient_norms.setdefault(name, []).append(norm)
            self.update_ratios.setdefault(name, []).append(ratio)
            self.recorder.scalar(f"gradient_norm/{name}", norm, number)
            self.recorder.scalar(f"update_to_weight/{name}", ratio, number)
        recent = statistics.median(self.step_seconds[-LAYERS_EVERY:])
        self.recorder.scalar("time/optimizer_step_ms", 1000 * recent, number)

    def end_epoch(self, epoch: int, steps_done: int, digits: Digits) -> None:
        """Evaluate and write down; epoch 0 is the net as it was initialised."""
        self._record_losses(steps_done)
        train_loss, train_accuracy = evaluate(self.net, digits.train_images, digits.train_labels)
        test_loss, test_accuracy = self.test(steps_done, digits)
        metrics = {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
            "loss_gap": test_loss - train_loss,
            "accuracy_gap": train_accuracy - test_accuracy,
        }
        self.epochs.append({"epoch": epoch, "step": steps_done} | metrics)
        for name, tag in EPOCH_TAGS.items():
            if not name.startswith("test"):  # those are written by each look at the test set
                self.recorder.scalar(tag, metrics[name], steps_done)
        self.recorder.flush()
        if self.diverged_at_step is None and not math.isfinite(train_loss + test_loss):
            self.diverged_at_step = steps_done

    def test(self, steps_done: int, digits: Digits) -> tuple[float, float]:
        """Evaluate on the test set. Nothing that is trained depends on it."""
        loss, accuracy = evaluate(self.net, digits.test_images, digits.test_labels)
        self.test_steps.append(steps_done)
        self.test_losses.append(loss)
        self.test_accuracies.append(accuracy)
        self.recorder.scalar(EPOCH_TAGS["test_loss"], loss, steps_done)
        self.recorder.scalar(EPOCH_TAGS["test_accuracy"], accuracy, steps_done)
        return loss, accuracy

    def _record_losses(self, steps_done: int) -> None:
        first = self.loss_steps[-1] if self.loss_steps else 0
        fresh = self.losses[first:steps_done].double().cpu()
        is_last = steps_done == len(self.losses)
        for start in range(0, len(fresh), LOSS_EVERY):
            window = fresh[start : start + LOSS_EVERY]
            if len(window) < LOSS_EVERY and not is_last:
                break  # it will be full in the next epoch
            step, mean = first + start + len(window), window.mean().item()
            self.recorder.scalar("loss/training", mean, step, self.loss_times[len(self.loss_steps)])
            self.loss_steps.append(step)
            self.loss_means.append(mean)
        broken = (~fresh.isfinite()).nonzero()
        if self.diverged_at_step is None and len(broken):
            self.diverged_at_step = first + int(broken[0]) + 1

    def result(
        self, config: TrainConfig, digits: Digits, twin: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What run.json holds. Comparing with torch's twin is told in the file of ours."""
        last = self.epochs[-1]
        gradient, step = math.fsum(self.gradient_seconds), math.fsum(self.step_seconds)
        steps = int(last["step"])
        # On a GPU only some steps are timed, because timing one means waiting for it.
        seconds = (gradient + step) / len(self.step_seconds) * steps
        return self.settings(config, digits) | {
            **{name: last[name] for name in FINAL},
            "diverged": self.diverged_at_step is not None,
            "diverged_at_step": self.diverged_at_step,
            "steps": steps,
            "seconds": seconds,
            "optimizer_ms_per_step": 1000 * statistics.median(self.step_seconds),
            "optimizer_share": step / (gradient + step),
            "twin": twin,
            "curves": {
                "training": {"step": self.loss_steps, "loss": self.loss_means},
                "epochs": self.epochs,
                "test": {
                    "step": self.test_steps,
                    "loss": self.test_losses,
                    "accuracy": self.test_accuracies,
                },
                "layers": {
                    "step": self.layer_steps,
                    "gradient_norm": self.gradient_norms,
                    "update_to_weight": self.update_ratios,
                },
            },
        }

    def settings(self, config: TrainConfig, digits: Digits) -> dict[str, Any]:
        return (
            {"implementation": self.implementation}
            | asdict(config)
            | {
                "dataset": digits.name,
                "train_size": len(digits.train_labels),
                "test_size": len(digits.test_labels),
                "device": digits.train_labels.device.type,
            }
        )


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    right = torch.zeros((), dtype=torch.int64, device=images.device)
    for some, their in zip(
        torch.split(images, EVALUATION_BATCH),
        torch.split(labels, EVALUATION_BATCH),
        strict=True,
    ):
        scores = net(some)
        loss += cross_entropy(scores, their, reduction="sum")
        right += (scores.argmax(1) == their).sum()
    return loss.item() / len(labels), right.item() / len(labels)


TESTS_PER_EPOCH = 5  # looks at the test set, the one at the end of the epoch included

OnSteps = Callable[[int], None]


def train_pair(
    config: TrainConfig, digits: Digits, out: Path, on_steps: OnSteps = lambda steps: None
) -> None:
    """Train ours and, if configured, torch's; leave run.json and events of both in `out`."""
    runs = [_training_run(config, name, digits, out) for name in config.implementations()]
    try:
        for run in runs:
            run.end_epoch(0, 0, digits)
        done = 0
        for epoch in range(1, config.epochs + 1):
            done = _train_epoch(config, runs, digits, epoch, done, on_steps)
            for run in runs:
                run.end_epoch(epoch, done, digits)
            if all(run.diverged_at_step is not None for run in runs):
                break  # nothing comes back from NaN
        twin = compare(*runs) if config.reference else None
        # Ours last: its file completes the pair.
        for run in reversed(runs):
            content = run.result(config, digits, twin if run is runs[0] else None)
            tags = [EPOCH_TAGS[name] for name in FINAL]
            run.recorder.finish(run.settings(config, digits), tags, content)
    except BaseException:
        for run in runs:
            run.recorder.abandon()
        raise


def _training_run(
    config: TrainConfig, implementation: str, digits: Digits, out: Path
) -> TrainingRun:
    built = build_net(config.net, config.depth, config.width, config.seed).to(
        digits.train_images.device
    )
    net = processes.data_parallel(built)
    ours = implementation == SCRATCH
    name = f"ours-{config.engine}" if ours else f"torch-{config.torch_engine}"
    optimizer = maker(name, OPTIMIZERS[config.optimizer], lr=config.lr)(net.parameters())
    steps = config.epochs * config.steps_per_epoch(len(digits.train_labels))
    return TrainingRun(
        implementation=implementation,
        net=net,
        optimizer=optimizer,
        recorder=RunRecorder(config.directory(out, implementation)),
        losses=torch.full((steps,), math.nan, device=digits.train_images.device),
    )


def _train_epoch(
    config: TrainConfig,
    runs: list[TrainingRun],
    digits: Digits,
    epoch: int,
    done: int,
    on_steps: OnSteps,
) -> int:
    timed_every = 10 if digits.train_images.is_cuda else 1
    steps = config.steps_per_epoch(len(digits.train_labels))
    tested_every = math.ceil(steps / TESTS_PER_EPOCH)
    for number, indices in enumerate(batches(config, epoch, digits.train_labels), start=1):
        mine = processes.my_part(indices)
        images, labels = digits.train_images[mine], digits.train_labels[mine]
        for run in runs:
            run.step(done, images, labels, timed=done % timed_every == 0)
        done += 1
        if number % tested_every == 0 and number < steps:
            for run in runs:
                run.test(done, digits)
        on_steps(1)
    return done


def batches(config: TrainConfig, epoch: int, labels: Tensor) -> Iterator[Tensor]:
    return shuffled(labels, config.batch_size, config.seed, epoch)


def shuffled(labels: Tensor, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The indices of each batch: an order that depends on the seed and the epoch alone."""
    generator = seeded_generator("batches", seed, epoch)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    return iter(torch.split(order, batch_size))


def compare(ours: TrainingRun, theirs: TrainingRun) -> dict[str, Any]:
    """The largest difference of the twins' losses over all steps; two NaN count as equal."""
    a, b = ours.losses.double(), theirs.losses.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    equal = all(
        torch.allclose(p, q, rtol=0, atol=0, equal_nan=True)
        for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True)
    )
    return {"max_abs_loss_difference": difference, "parameters_equal": equal}
