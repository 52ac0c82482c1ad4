"""Train one net: with our optimizer and, in lockstep with it, a reference run with torch's.

Both start from the same weights and see the same batches, so that whatever differs between them
comes from the optimizers. Nothing is drawn here.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import processes
from benchmarks.common.data import Digits
from benchmarks.common.implementations import maker
from benchmarks.common.nets import build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.record import RunRecorder
from benchmarks.common.training import Batch, CapturedStep, Step, evaluate, shuffled, train

SCRATCH, TORCH = "scratch", "torch"
DIRECTORIES = {SCRATCH: "ours", TORCH: "torch"}
LOSS_EVERY = 10  # steps that one point of the training loss is the mean of
LAYERS_EVERY = 50  # steps between two looks at the gradients and updates of the layers
TESTS_PER_EPOCH = 5  # looks at the test set, the one at the end of the epoch included

EPOCH_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "loss_gap": "generalization_gap/loss",
    "accuracy_gap": "generalization_gap/accuracy",
}
FINAL = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")

OnSteps = Callable[[int], None]


@dataclass(frozen=True)
class TrainConfig:
    """All that decides how a net is trained by both implementations, except for the data."""

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
    capture: bool = False
    reference: bool = True

    def implementations(self) -> tuple[str, ...]:
        return (SCRATCH, TORCH) if self.reference else (SCRATCH,)

    def steps_per_epoch(self, images: int) -> int:
        return math.ceil(images / self.batch_size)  # the last batch of an epoch may be smaller

    def directory(self, out: Path, implementation: str) -> Path:
        return out / self.net / self.optimizer / DIRECTORIES[implementation]

    def make_optimizer(self, implementation: str, parameters: Any) -> torch.optim.Optimizer:
        """Ours is capturable if steps are captured; torch's never, for then its bits would differ.

        Raises:
            NotImplementedError: there is no such engine.
        """
        ours = implementation == SCRATCH
        name = f"ours-{self.engine}" if ours else f"torch-{self.torch_engine}"
        options = {"capturable": True} if ours and self.capture else {}
        return maker(name, OPTIMIZERS[self.optimizer], lr=self.lr, **options)(parameters)


def train_pair(
    config: TrainConfig, digits: Digits, out: Path, on_steps: OnSteps = lambda steps: None
) -> None:
    """Train ours and, if configured, torch's; leave run.json and events of both in `out`."""
    names = config.implementations()
    copies = itertools.tee(batches(config, digits), len(names))
    runs = [
        TrainingRun(config, name, digits, some, RunRecorder(config.directory(out, name)))
        for name, some in zip(names, copies, strict=True)
    ]
    per_epoch = config.steps_per_epoch(len(digits.train_labels))
    tested_every = math.ceil(per_epoch / TESTS_PER_EPOCH)
    try:
        for run in runs:
            run.end_epoch(0)
        for done in range(1, config.epochs * per_epoch + 1):
            for run in runs:
                run.step()
            epoch, of_epoch = divmod(done, per_epoch)
            for run in runs:
                if of_epoch == 0:
                    run.end_epoch(epoch)
                elif of_epoch % tested_every == 0:
                    run.test()
            on_steps(1)
            if of_epoch == 0 and all(run.diverged_at_step is not None for run in runs):
                break  # nothing comes back from NaN
        comparison = compare(*runs) if config.reference else None
        # Ours last: its file completes the pair.
        for run in reversed(runs):
            content = run.result(comparison if run is runs[0] else None)
            tags = [EPOCH_TAGS[name] for name in FINAL]
            run.recorder.finish(run.settings(), tags, content)
    except BaseException:
        for run in runs:
            run.recorder.abandon()
        raise


def batches(config: TrainConfig, digits: Digits) -> Iterator[Batch]:
    """This process's part of every batch of all epochs."""
    for epoch in range(1, config.epochs + 1):
        for indices in shuffled(digits.train_labels, config.batch_size, config.seed, epoch):
            mine = processes.local_batch(indices)
            yield digits.train_images[mine], digits.train_labels[mine]


class TrainingRun:
    """One net in training with its optimizer, and all that is measured of it.

    Attributes:
        recorder: writes the curves and, at the end, the file.
        losses: of every step, on the device: reading one at each step would cost time.
        diverged_at_step: the first step whose loss was not finite.
    """

    def __init__(
        self,
        config: TrainConfig,
        implementation: str,
        digits: Digits,
        batches: Iterator[Batch],
        recorder: RunRecorder,
    ) -> None:
        self.config, self.implementation, self.digits = config, implementation, digits
        self.recorder = recorder
        device = digits.train_images.device
        built = build_net(config.net, config.depth, config.width, config.seed).to(device)
        self.net = processes.data_parallel(built)
        optimizer = config.make_optimizer(implementation, self.net.parameters())
        optimizer.register_step_pre_hook(lambda *_: self._before_update())
        optimizer.register_step_post_hook(lambda *_: self._after_update())
        kind = partial(CapturedStep, eager_every=LAYERS_EVERY) if config.capture else Step
        self._training = train(kind(self.net, optimizer), batches)
        self._steps = config.epochs * config.steps_per_epoch(len(digits.train_labels))
        self.losses = torch.full((self._steps,), math.nan, device=device)
        self.diverged_at_step: int | None = None
        self._done = 0

        self._timed_every = 10 if device.type == "cuda" else 1  # to time is to wait for the device
        self._is_timed = False
        self._has_gradient = 0.0
        self._seconds: list[float] = []  # of whole steps
        self._gradient_seconds: list[float] = []
        self._update_seconds: list[float] = []

        self._epochs: list[dict[str, float]] = []
        self._batches: dict[str, list[Any]] = {"step": [], "loss": []}
        self._loss_times: list[float] = []
        self._tests: dict[str, list[Any]] = {"step": [], "loss": [], "accuracy": []}
        self._layer_steps: list[int] = []
        self._gradient_norms: dict[str, list[float]] = {}
        self._update_ratios: dict[str, list[float]] = {}

    def step(self) -> None:
        """One training step. Forward and backward are timed apart from the update."""
        number, is_last = self._done, self._done == self._steps - 1
        look_at_layers = number % LAYERS_EVERY == 0 or is_last
        before = self._weights() if look_at_layers else {}
        self._is_timed = number % self._timed_every == 0
        self._began = self._clock()
        self.losses[number] = next(self._training)
        if self._is_timed:
            self._seconds.append(self._clock() - self._began)
        self._done += 1
        if self._done % LOSS_EVERY == 0 or is_last:
            self._loss_times.append(time.time())
        if look_at_layers:
            self._record_layers(number, before)

    def _before_update(self) -> None:
        self._has_gradient = self._clock()

    def _after_update(self) -> None:
        if self._is_timed and not self._is_capturing():
            self._gradient_seconds.append(self._has_gradient - self._began)
            self._update_seconds.append(self._clock() - self._has_gradient)

    def _is_capturing(self) -> bool:
        """Whether nothing is computed now, and nothing can be waited for."""
        return self.losses.is_cuda and torch.cuda.is_current_stream_capturing()

    def _clock(self) -> float:
        if self._is_timed and self.losses.is_cuda and not self._is_capturing():
            torch.cuda.synchronize(self.losses.device)
        return time.perf_counter()

    def _weights(self) -> dict[str, Tensor]:
        return {name: w.detach().clone() for name, w in weights_by_layer(self.net).items()}

    @torch.no_grad()
    def _record_layers(self, number: int, before: dict[str, Tensor]) -> None:
        self._layer_steps.append(number)
        layers = weights_by_layer(self.net)
        gradients = [w.grad.norm() for w in layers.values() if w.grad is not None]
        updates = [(w - before[name]).norm() / before[name].norm() for name, w in layers.items()]
        norms, ratios = torch.stack([torch.stack(gradients), torch.stack(updates)]).tolist()
        for name, norm, ratio in zip(layers, norms, ratios, strict=True):
            self._gradient_norms.setdefault(name, []).append(norm)
            self._update_ratios.setdefault(name, []).append(ratio)
            self.recorder.scalar(f"gradient_norm/{name}", norm, number)
            self.recorder.scalar(f"update_to_weight/{name}", ratio, number)
        recent = statistics.median_low(self._update_seconds[-LAYERS_EVERY:])
        self.recorder.scalar("time/optimizer_step_ms", 1000 * recent, number)

    def end_epoch(self, epoch: int) -> None:
        """Evaluate and write down; epoch 0 is the net as it was initialised."""
        self._record_losses()
        digits = self.digits
        train_loss, train_accuracy = evaluate(self.net, digits.train_images, digits.train_labels)
        test_loss, test_accuracy = self.test()
        metrics = {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
            "loss_gap": test_loss - train_loss,
            "accuracy_gap": train_accuracy - test_accuracy,
        }
        self._epochs.append({"epoch": epoch, "step": self._done} | metrics)
        for name, tag in EPOCH_TAGS.items():
            if not name.startswith("test"):  # those are written by each look at the test set
                self.recorder.scalar(tag, metrics[name], self._done)
        self.recorder.flush()
        if self.diverged_at_step is None and not math.isfinite(train_loss + test_loss):
            self.diverged_at_step = self._done

    def test(self) -> tuple[float, float]:
        """Evaluate on the test set. Nothing that is trained depends on it."""
        loss, accuracy = evaluate(self.net, self.digits.test_images, self.digits.test_labels)
        for name, value in (("step", self._done), ("loss", loss), ("accuracy", accuracy)):
            self._tests[name].append(value)
        self.recorder.scalar(EPOCH_TAGS["test_loss"], loss, self._done)
        self.recorder.scalar(EPOCH_TAGS["test_accuracy"], accuracy, self._done)
        return loss, accuracy

    def _record_losses(self) -> None:
        """The mean losses of the batches since the last epoch, and whether all are finite."""
        steps, means = self._batches["step"], self._batches["loss"]
        first = steps[-1] if steps else 0
        fresh = self.losses[first : self._done].double().cpu()
        is_last = self._done == self._steps
        for start in range(0, len(fresh), LOSS_EVERY):
            window = fresh[start : start + LOSS_EVERY]
            if len(window) < LOSS_EVERY and not is_last:
                break  # it will be full in the next epoch
            step, mean = first + start + len(window), window.mean().item()
            when = self._loss_times[len(steps)]
            self.recorder.scalar("loss/train_batches", mean, step, when)
            steps.append(step)
            means.append(mean)
        broken = (~fresh.isfinite()).nonzero()
        if self.diverged_at_step is None and len(broken):
            self.diverged_at_step = first + int(broken[0]) + 1

    def result(self, comparison: dict[str, Any] | None) -> dict[str, Any]:
        """What run.json holds. How the two runs compare is told in the file of ours."""
        last = self._epochs[-1]
        # Where only some steps are timed, more of those are eager than of all, and the first, in
        # which kernels are compiled, is one of few.
        typical = statistics.fmean if self._timed_every == 1 else statistics.median_low
        gradient, update = typical(self._gradient_seconds), typical(self._update_seconds)
        return self.settings() | {
            **{name: last[name] for name in FINAL},
            "diverged": self.diverged_at_step is not None,
            "diverged_at_step": self.diverged_at_step,
            "steps": self._done,
            "seconds": typical(self._seconds) * self._done,
            "optimizer_ms_per_step": 1000 * statistics.median_low(self._update_seconds),
            "optimizer_share": update / (gradient + update),
            "comparison": comparison,
            "curves": {
                "training": self._batches,
                "epochs": self._epochs,
                "test": self._tests,
                "layers": {
                    "step": self._layer_steps,
                    "gradient_norm": self._gradient_norms,
                    "update_to_weight": self._update_ratios,
                },
            },
        }

    def settings(self) -> dict[str, Any]:
        return (
            {"implementation": self.implementation}
            | asdict(self.config)
            | {
                "dataset": self.digits.name,
                "train_size": len(self.digits.train_labels),
                "test_size": len(self.digits.test_labels),
                "device": self.digits.train_labels.device.type,
            }
        )


def compare(ours: TrainingRun, theirs: TrainingRun) -> dict[str, Any]:
    """The largest difference of the losses over all steps; two NaN count as equal."""
    a, b = ours.losses.double(), theirs.losses.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    equal = all(
        torch.allclose(p, q, rtol=0, atol=0, equal_nan=True)
        for p, q in zip(ours.net.parameters(), theirs.net.parameters(), strict=True)
    )
    return {"max_abs_loss_difference": difference, "parameters_equal": equal}
