"""One trial: a net trained with one setting of its optimizer, and all that is measured of it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from benchmarks.common import training
from benchmarks.common.data import SYNTHETIC_NAME, Digits
from benchmarks.common.nets import CLASSES, build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.training import Batch, CapturedStep, batches, evaluate, step_for

PROTOCOL = 2  # raised when results of an older version may no longer be mixed with newer ones
SEARCH, SELECTION, FINAL, TIMING = PHASES = ("search", "selection", "final", "timing")
SEARCH_SPACES = ("lr", "all")
SCHEDULES = ("constant", "cosine", "step")
TARGETS = (0.97, 0.98)  # of validation accuracy
# On validation images; the timer stands still meanwhile. The test set is evaluated after an epoch.
EVALUATIONS_PER_EPOCH = {SEARCH: 1, SELECTION: 1, FINAL: 4, TIMING: 4}
CHANCE = 1 / CLASSES
# Below it a run has failed. A net that gives every image the same class scores up to 11.4 %.
AT_CHANCE = 2 * CHANCE

# Initial weights come from torch's global generator, which the threads of a worker share.
_GENERATOR_LOCK = threading.Lock()

OnStep = Callable[[], None]  # is called after each step, and may raise to end the training


@dataclass(frozen=True)
class Settings:
    """All that decides a trial's result. `options` holds what is not the optimizer's default.

    Its names are `momentum` (β₁ of Adam and AdamW), `beta2` (α of RMSProp), `eps` and
    `weight_decay`.
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
    test_size: int = 10_000

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_size / self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the optimizer's constructor."""
        keywords: dict[str, Any] = {"lr": self.lr, **OPTIMIZERS[self.optimizer].options}
        options = dict(self.options)
        if self.optimizer in ("adam", "adamw") and options.keys() & {"momentum", "beta2"}:
            keywords["betas"] = (options.pop("momentum", 0.9), options.pop("beta2", 0.999))
        if self.optimizer == "rmsprop" and "beta2" in options:
            keywords["alpha"] = options.pop("beta2")
        return keywords | options


@dataclass(frozen=True)
class Trial:
    """A training run and its purpose: which phase of the study of which search space."""

    phase: str
    search_space: str
    settings: Settings

    def content(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "phase": self.phase,
            "search_space": self.search_space,
            "settings": asdict(self.settings),
        }

    @cached_property
    def key(self) -> str:
        """The name of the trial's file."""
        return key_of(self.content())

    @cached_property
    def run_key(self) -> str:
        """Trials of two search spaces that have it in common have the same result."""
        return run_key_of(self.content())


def key_of(content: Mapping[str, Any]) -> str:
    return _hash(content, "protocol", "phase", "search_space", "settings")


def run_key_of(content: Mapping[str, Any]) -> str:
    return _hash(content, "protocol", "phase", "settings")


def _hash(content: Mapping[str, Any], *names: str) -> str:
    text = json.dumps({name: content[name] for name in names}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def accuracy_of(result: Mapping[str, Any], part: str) -> float:
    """The accuracy at the end on a data set; a run that diverged counts as guessing."""
    return CHANCE if result["diverged"] else float(result[f"{part}_accuracy"])


def has_failed(accuracy: float) -> bool:
    """Whether a run with this accuracy at the end has learnt nothing, or lost it again."""
    return accuracy < AT_CHANCE


@dataclass(frozen=True)
class Split:
    """Digits in three parts: for training, for choosing settings, and for the comparison."""

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
class History:
    """The measurements of one training run."""

    trial: Trial
    steps: int = 0
    diverged_at_step: int | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    gradient_norms: dict[str, list[float]] = field(default_factory=dict)
    targets: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def add_evaluation(
        self,
        step: int,
        losses: Tensor,
        seconds: float | None,
        validation: tuple[float, float],
        test: tuple[float, float],
    ) -> None:
        """Add losses and accuracies, and the training losses of the steps since the last ones."""
        self.steps = step
        not_finite = (~losses.isfinite()).nonzero()
        if len(not_finite):
            self.diverged_at_step = step - len(losses) + int(not_finite[0]) + 1
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

    def add_gradient_norms(self, step: int, norms: Mapping[str, float]) -> None:
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


class Timer:
    """Seconds of training: it is stopped while a net is evaluated."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: float | None = None
        self.seconds = 0.0

    def start(self) -> None:
        self._started = self._now()

    def restart(self) -> None:
        self.seconds = 0.0
        self.start()

    def stop(self) -> None:
        assert self._started is not None, "it was started"
        self.seconds += self._now() - self._started

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def train(trial: Trial, data: Split, on_step: OnStep = lambda: None) -> dict[str, Any]:
    """Train one net by itself; returns the `result` of a trial's file.

    On a GPU steps are captured as a CUDA graph; the first, in which that is done, are not timed.
    """
    settings, device = trial.settings, data.images.device
    net = initial_net(settings).to(device)
    keywords = settings.keywords() | capturable_options(settings, device)
    optimizer = OPTIMIZERS[settings.optimizer].scratch(net.parameters(), **keywords)
    scheduler = schedule(optimizer, settings)
    history = History(trial)
    timer = Timer(device)
    losses = torch.full((settings.steps,), math.nan, device=device)
    step = step_for(device)(net, optimizer)
    evaluated = done = 0

    def add_evaluation() -> None:
        nonlocal evaluated
        validation = evaluate(net, data.validation_images, data.validation_labels)
        test = math.nan, math.nan
        if uses_test_set(trial, done):
            test = evaluate(net, data.test_images, data.test_labels)
        history.add_evaluation(done, losses[evaluated:done].cpu(), timer.seconds, validation, test)
        evaluated = done

    add_evaluation()
    timer.start()
    for loss in training.train(step, batches_of(settings, data)):
        if scheduler is not None:
            scheduler.step()
        losses[done] = loss
        done += 1
        on_step()
        if done == step.untimed:
            timer.restart()
        if is_evaluated(trial, done):
            timer.stop()
            gradients = {n: w.grad for n, w in weights_by_layer(net).items()}
            norms = torch.stack([g.norm() for g in gradients.values() if g is not None])
            history.add_gradient_norms(done, dict(zip(gradients, norms.tolist(), strict=True)))
            add_evaluation()
            if history.diverged_at_step is not None:
                break  # nothing comes back from NaN
            timer.start()
    at_end = math.nan, math.nan
    if trial.phase == FINAL:
        at_end = evaluate(net, data.images, data.labels)
    return history.result(timer.seconds, at_end)


def capturable_options(settings: Settings, device: torch.device) -> dict[str, Any]:
    """What the optimizer's constructor is given besides, so that a GPU's steps can be captured."""
    if step_for(device) is not CapturedStep:
        return {}
    if settings.schedule == "constant":
        return {"capturable": True}
    # A graph would freeze a number that the schedule changes. In double precision, as in Python.
    lr = torch.tensor(settings.lr, dtype=torch.float64, device=device)
    return {"capturable": True, "lr": lr}


def batches_of(settings: Settings, data: Split) -> Iterator[Batch]:
    epochs = range(1, settings.epochs + 1)
    return batches(data.images, data.labels, settings.batch_size, settings.seed, epochs)


def initial_net(settings: Settings) -> nn.Sequential:
    with _GENERATOR_LOCK:
        return build_net(settings.net, settings.depth, settings.width, settings.seed)


def is_evaluated(trial: Trial, step: int) -> bool:
    """Whether the net is evaluated on the validation images after this step (1, 2, …)."""
    steps = trial.settings.steps_per_epoch
    interval = math.ceil(steps / EVALUATIONS_PER_EPOCH[trial.phase])
    return step % steps == 0 or step % steps % interval == 0


def uses_test_set(trial: Trial, step: int) -> bool:
    """Only finals, at the start and after each epoch: nothing is chosen on the test set."""
    return trial.phase == FINAL and step % trial.settings.steps_per_epoch == 0


def schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler | None:
    """torch's scheduler of the learning rate, stepped after each batch; None for a constant rate.

    "cosine" goes down to 0; "step" divides by 10 at half and again at three quarters of the steps.
    """
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.steps)
    if settings.schedule == "step":
        return MultiStepLR(optimizer, [settings.steps // 2, settings.steps * 3 // 4])
    return None
