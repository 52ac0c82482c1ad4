"""One trial: a net trained with one setting, and all that is measured of it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from benchmarks.common.data import SYNTHETIC_NAME, Digits
from benchmarks.common.nets import build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.training import evaluate, shuffled

PROTOCOL = 1  # raised when results of an older version may no longer be mixed with newer ones
SEARCH, FINAL = "search", "final"
TRACKS = ("lr", "all")
SCHEDULES = ("constant", "cosine", "step")
TARGETS = (0.97, 0.98)  # of validation accuracy
LOOKS = {SEARCH: 1, FINAL: 4}  # evaluations in an epoch; the clock stands still meanwhile

# Initial weights come from torch's global generator, which the threads of a worker share.
_ONE_AT_A_TIME = threading.Lock()

OnStep = Callable[[], None]  # is called after each step, and may raise to end the training


@dataclass(frozen=True)
class Settings:
    """All that decides how a net is trained. `options` holds what is not the optimizer's default.

    Its names are `momentum` (β₁ of Adam and AdamW), `beta2` (α of RMSProp) and `eps`.
    """

    net: str
    optimizer: str
    lr: float
    options: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "constant"
    seed: int = 0
    epochs: int = 3
    batch_size: int = 128
    depth: int = 5
    width: int = 128
    dataset: str = "mnist"
    train_size: int = 50_000
    validation_size: int = 10_000

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_size / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def keywords(self) -> dict[str, Any]:
        """What the optimizer's constructor is given."""
        keywords: dict[str, Any] = {"lr": self.lr, **OPTIMIZERS[self.optimizer].options}
        options = dict(self.options)
        if self.optimizer in ("adam", "adamw") and options.keys() & {"momentum", "beta2"}:
            keywords["betas"] = (options.pop("momentum", 0.9), options.pop("beta2", 0.999))
        if self.optimizer == "rmsprop" and "beta2" in options:
            keywords["alpha"] = options.pop("beta2")
        return keywords | options


@dataclass(frozen=True)
class Trial:
    """What is run, and what for: a search of a track, or the re-run of its winner."""

    phase: str
    track: str
    settings: Settings

    def content(self) -> dict[str, Any]:
        return {"protocol": PROTOCOL, "phase": self.phase, "track": self.track} | {
            "settings": asdict(self.settings)
        }

    @cached_property
    def key(self) -> str:
        return key_of(self.content())


def key_of(content: Mapping[str, Any]) -> str:
    """The name of a trial's file, from what the trial is; its result has no part in it."""
    what = {name: content[name] for name in ("protocol", "phase", "track", "settings")}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """Digits in three parts. The last of the training set validate; the test set only reports."""

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split(digits: Digits, validation_size: int) -> Split:
    images, labels = digits.train_images, digits.train_labels
    return Split(
        images[:-validation_size],
        labels[:-validation_size],
        images[-validation_size:],
        labels[-validation_size:],
        digits.test_images,
        digits.test_labels,
    )


def dataset_of(digits: Digits) -> str:
    return "synthetic" if digits.name == SYNTHETIC_NAME else "mnist"


@dataclass
class Observations:
    """What is seen of one net in training. The test set is looked at in finals alone."""

    trial: Trial
    steps: int = 0
    diverged_at_step: int | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def look(
        self,
        step: int,
        losses: Tensor,
        seconds: float | None,
        validation: tuple[float, float],
        test: tuple[float, float],
    ) -> None:
        """Note an evaluation, and the losses of the steps since the one before."""
        self.steps = step
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            self.diverged_at_step = step - len(losses) + int(broken[0]) + 1
        elif not math.isfinite(validation[0]):
            self.diverged_at_step = step
        epoch = step / self.trial.settings.steps_per_epoch
        _append(
            self.curves,
            step=step,
            epoch=epoch,
            train_loss=losses.double().mean().item() if len(losses) else math.nan,
            validation_loss=validation[0],
            validation_accuracy=validation[1],
            test_loss=test[0],
            test_accuracy=test[1],
        )
        for target in TARGETS:
            if str(target) not in self.targets and validation[1] >= target:
                self.targets[str(target)] = {"step": step, "epoch": epoch, "seconds": seconds}

    def look_at_gradients(self, step: int, norms: Mapping[str, float]) -> None:
        _append(self.gradient_norms, step=step, **norms)

    def result(self, seconds: float | None, train: tuple[float, float]) -> dict[str, Any]:
        last = {name: values[-1] for name, values in self.curves.items()}
        never = dict.fromkeys(("step", "epoch", "seconds"))
        return {
            "diverged": self.diverged_at_step is not None,
            "diverged_at_step": self.diverged_at_step,
            "steps": self.steps,
            "seconds": seconds,
            "train_loss": train[0],
            "train_accuracy": train[1],
            **{
                f"{part}_{measure}": last[f"{part}_{measure}"]
                for part in ("validation", "test")
                for measure in ("loss", "accuracy")
            },
            "loss_gap": last["test_loss"] - train[0],
            "accuracy_gap": train[1] - last["test_accuracy"],
            "targets": {str(target): self.targets.get(str(target), never) for target in TARGETS},
            "curves": self.curves,
            "gradient_norms": self.gradient_norms,
        }


def _append(lists: dict[str, list[float]], **values: float) -> None:
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


class Stopwatch:
    """Seconds of training: it stands still while a net is evaluated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: float | None = None
        self.seconds = 0.0

    def go(self) -> None:
        self._began = self._now()

    def stop(self) -> None:
        assert self._began is not None, "it goes"
        self.seconds += self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def train(trial: Trial, data: Split, on_step: OnStep = lambda: None) -> dict[str, Any]:
    """Train one net by itself; returns the `result` of a trial's file."""
    settings = trial.settings
    net = initial_net(settings).to(data.images.device)
    optimizer = OPTIMIZERS[settings.optimizer].scratch(net.parameters(), **settings.keywords())
    scheduler = schedule(optimizer, settings)
    seen = Observations(trial)
    watch = Stopwatch(data.images.device)
    losses = torch.full((settings.steps,), math.nan, device=data.images.device)
    looked = done = 0

    def look() -> None:
        nonlocal looked
        validation = evaluate(net, data.validation_images, data.validation_labels)
        test = math.nan, math.nan
        if trial.phase == FINAL:
            test = evaluate(net, data.test_images, data.test_labels)
        seen.look(done, losses[looked:done].cpu(), watch.seconds, validation, test)
        looked = done

    look()
    for epoch in range(1, settings.epochs + 1):
        watch.go()
        for number, batch in enumerate(
            shuffled(data.labels, settings.batch_size, settings.seed, epoch), start=1
        ):
            optimizer.zero_grad()
            loss = cross_entropy(net(data.images[batch]), data.labels[batch])
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses[done] = loss.detach()
            done += 1
            on_step()
            if is_look(trial, number):
                watch.stop()
                gradients = {n: w.grad for n, w in weights_by_layer(net).items()}
                norms = torch.stack([g.norm() for g in gradients.values() if g is not None])
                seen.look_at_gradients(done, dict(zip(gradients, norms.tolist(), strict=True)))
                look()
                if seen.diverged_at_step is not None:
                    break  # nothing comes back from NaN
                watch.go()
        if seen.diverged_at_step is not None:
            break
    return seen.result(watch.seconds, evaluate(net, data.images, data.labels))


def initial_net(settings: Settings) -> nn.Sequential:
    with _ONE_AT_A_TIME:
        return build_net(settings.net, settings.depth, settings.width, settings.seed)


def is_look(trial: Trial, number: int) -> bool:
    """Whether the nets are evaluated after step `number`, 1, 2, …, of an epoch."""
    steps = trial.settings.steps_per_epoch
    return number % math.ceil(steps / LOOKS[trial.phase]) == 0 or number == steps


def schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler | None:
    """torch's scheduler of the learning rate, stepped after each batch; None for a constant rate.

    "cosine" goes down to 0; "step" divides by 10 at half and again at three quarters of the steps.
    """
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.steps)
    if settings.schedule == "step":
        return MultiStepLR(optimizer, [settings.steps // 2, settings.steps * 3 // 4])
    return None
