"""Many trials at once: their parameters in stacks, stepped by one optimizer.

The rules of the optimizers are elementwise, so K nets that differ in their hyper-parameters alone
are one net whose parameters have a further dimension of length K, and their learning rates are one
tensor of K that broadcasts along it. Each rule is the optimizer's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from benchmarks.common.nets import weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.training import shuffled
from benchmarks.study.trial import (
    FINAL,
    Observations,
    OnStep,
    Settings,
    Split,
    Trial,
    initial_net,
    is_look,
    schedule,
)
from torch_scratch_optim import ScratchOptimizer
from torch_scratch_optim._options import Group
from torch_scratch_optim.engines import Engine, Table, block_size, functional

EVALUATED_AT_ONCE = 1000  # images; the activations of all nets should fit a cache


def stackable(trial: Trial) -> tuple[Any, ...]:
    """What trials must share to be stacked: all but the hyper-parameters of their optimizer."""
    settings = vars(trial.settings) | {"lr": None, "options": sorted(trial.settings.options)}
    return trial.phase, trial.track, *map(str, settings.values())


def train_stack(
    trials: Sequence[Trial], data: Split, on_step: OnStep = lambda: None
) -> list[dict[str, Any]]:
    """Train all of them in lockstep; returns the `result` of each trial's file.

    Equal to training each by itself up to rounding. Seconds are unknown: they are shared.

    Raises:
        ValueError: the trials differ in more than their hyper-parameters.
    """
    if len(set(map(stackable, trials))) != 1:
        raise ValueError("only trials that differ in hyper-parameters alone can be stacked")
    first, settings, device = trials[0], trials[0].settings, data.images.device
    net = initial_net(settings).to(device)
    stacks, _ = stack_module_state([net] * len(trials))
    forward = vmap(lambda one, images: functional_call(net, one, (images,)), in_dims=(0, None))
    optimizer = stacked_optimizer(stacks.values(), [trial.settings for trial in trials])
    # torch's schedulers know one learning rate: let them move the share of it that is in force.
    share = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(share, settings)
    rates = optimizer.param_groups[0]["lr"]
    seen = [Observations(trial) for trial in trials]
    losses = torch.full((settings.steps, len(trials)), math.nan, device=device)
    looked = done = 0

    def evaluate(images: Tensor, labels: Tensor) -> list[tuple[float, float]]:
        return _evaluate(lambda some: forward(stacks, some), images, labels, len(trials))

    def look() -> None:
        nonlocal looked
        validation = evaluate(data.validation_images, data.validation_labels)
        test = [(math.nan, math.nan)] * len(trials)
        if first.phase == FINAL:
            test = evaluate(data.test_images, data.test_labels)
        for k, one in enumerate(seen):
            if one.diverged_at_step is None:
                one.look(done, losses[looked:done, k].cpu(), None, validation[k], test[k])
        looked = done

    look()
    for epoch in range(1, settings.epochs + 1):
        for number, batch in enumerate(
            shuffled(data.labels, settings.batch_size, settings.seed, epoch), start=1
        ):
            optimizer.zero_grad()
            loss = _losses(forward(stacks, data.images[batch]), data.labels[batch])
            loss.sum().backward()
            optimizer.param_groups[0]["lr"] = rates * share.param_groups[0]["lr"]
            optimizer.step()
            if scheduler is not None:
                share.step()
                scheduler.step()
            losses[done] = loss.detach()
            done += 1
            on_step()
            if is_look(first, number):
                _look_at_gradients(seen, done, net, stacks)
                look()
        if all(one.diverged_at_step is not None for one in seen):
            break
    train = evaluate(data.images, data.labels)
    return [one.result(None, train[k]) for k, one in enumerate(seen)]


def _losses(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each net; scores are nets x images x classes."""
    nets, images, _ = scores.shape
    each = cross_entropy(scores.flatten(0, 1), labels.repeat(nets), reduction="none")
    return each.view(nets, images).mean(1)


@torch.no_grad()
def _evaluate(
    forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, nets: int
) -> list[tuple[float, float]]:
    """Mean loss and accuracy of each net."""
    loss = torch.zeros(nets, dtype=torch.float64, device=images.device)
    right = torch.zeros(nets, dtype=torch.int64, device=images.device)
    pieces = (images.split(EVALUATED_AT_ONCE), labels.split(EVALUATED_AT_ONCE))
    for some, their in zip(*pieces, strict=True):
        scores = forward(some)
        loss += _losses(scores, their).double() * len(their)
        right += (scores.argmax(2) == their).sum(1)
    means = torch.stack([loss, right.double()], 1) / len(labels)
    return [(mean_loss, accuracy) for mean_loss, accuracy in means.tolist()]


def _look_at_gradients(
    seen: list[Observations], step: int, net: nn.Module, stacks: dict[str, Any]
) -> None:
    layers = list(weights_by_layer(net))
    gradients = [stacks[f"{name}.weight"].grad.flatten(1) for name in layers]
    norms = torch.stack([gradient.norm(dim=1) for gradient in gradients], 1).tolist()
    for one, its in zip(seen, norms, strict=True):
        if one.diverged_at_step is None:
            one.look_at_gradients(step, dict(zip(layers, its, strict=True)))


class Stacked(ScratchOptimizer):
    """Beside an optimizer's class: a group's options may be tensors of a number for each trial.

    Every parameter's first dimension counts the trials.
    """

    def engine(self, group: Group) -> Engine:
        return run_stacked

    def columns(self, group: Group) -> dict[str, str]:
        # An option decides about state by being zero or not: keep what one of the trials needs.
        largest = {k: v.max().item() if isinstance(v, Tensor) else v for k, v in group.items()}
        return super().columns(largest)


def run_stacked(rule: Callable[..., None], table: Table, scalars: dict[str, Any]) -> None:
    """Run a rule on stacks, some trials at a time, each with its own scalars."""
    for row in table.rows():
        p = row["p"]
        at_once = max(1, block_size(p) // p[0].numel())
        for start in range(0, len(p), at_once):
            part = slice(start, start + at_once)
            block = {symbol: tensor[part] for symbol, tensor in row.items()}
            functional(rule, block, {k: _beside(v, part, p) for k, v in scalars.items()})


def _beside(value: Any, part: slice, p: Tensor) -> Any:
    """The numbers of some trials, shaped to broadcast along their parameters."""
    if not isinstance(value, Tensor):
        return value
    return value[part].to(p).view(-1, *[1] * (p.ndim - 1))


def stacked_optimizer(parameters: Any, settings: Sequence[Settings]) -> torch.optim.Optimizer:
    """One optimizer for the stacks of the trials with these settings, which share an algorithm."""
    alone = OPTIMIZERS[settings[0].optimizer].scratch
    assert isinstance(alone, type), "an optimizer is made by its class"
    kind = cast(Any, type(f"Stacked{alone.__name__}", (Stacked, alone), {}))
    keywords = [one.keywords() for one in settings]
    optimizer: torch.optim.Optimizer = kind(parameters, **keywords[0])  # is checked as any is
    for name in keywords[0]:
        optimizer.param_groups[0][name] = _together([one[name] for one in keywords])
    return optimizer


def _together(values: list[Any]) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_together(list(column)) for column in zip(*values, strict=True))
    # In double precision, as Python counts: the optimizers compute their scalars from these.
    return torch.tensor(values, dtype=torch.float64)
