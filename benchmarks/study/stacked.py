"""Many trials at once: their parameters are stacked and moved by one optimizer.

The rules of the optimizers are elementwise. So K nets that differ only in their seeds and their
hyper-parameters are one net whose parameters have one more dimension, of length K, and their
learning rates are a tensor of length K that broadcasts along it. Each rule is the optimizer's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.common.memory import free_bytes
from benchmarks.common.nets import CLASSES, PIXELS, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.stacks import StackedNets
from benchmarks.common.training import Batch, shuffled, stacked_cross_entropy, step_for, train
from benchmarks.study.trial import (
    FINAL,
    TIMING,
    History,
    OnStep,
    Settings,
    Split,
    Trial,
    capturable_options,
    initial_net,
    is_evaluated,
    schedule,
    uses_test_set,
)
from torch_scratch_optim import ScratchOptimizer
from torch_scratch_optim._options import Group
from torch_scratch_optim.engines import (
    GRADIENT,
    Engine,
    Scalars,
    Table,
    block_size,
    descending,
    functional,
)

EVALUATED_AT_ONCE = 1000  # images; the activations of all nets should fit a cache
LARGEST_STACK = 512  # nets, which keep a GPU busy
SHARE_OF_MEMORY = 0.5  # for a stack: temporaries and the allocator's gaps take more
STATE = 2  # tensors of a parameter's size, of the optimizer with the most


def stackable(trial: Trial) -> tuple[Any, ...]:
    """What stacked trials have in common: all but seeds and hyper-parameters of their optimizer.

    A timing trial has nothing in common with another: its seconds are those of one net.
    """
    if trial.phase == TIMING:
        return (trial.key,)
    settings = vars(trial.settings) | {
        "lr": None,
        "options": sorted(trial.settings.options),
        "seed": None,
    }
    return trial.phase, trial.search_space, *map(str, settings.values())


def bytes_of_net(settings: Settings) -> int:
    """Memory that one net of a stack takes in float32, at the most.

    Parameters, gradients and state; and the activations of a batch with their gradients, or of the
    images that are evaluated at once.
    """
    parameters = sum(p.numel() for p in initial_net(settings).parameters())
    units = 2 * settings.depth * settings.width + 2 * CLASSES  # outputs of all layers
    batch = settings.batch_size * (PIXELS + 2 * units)
    return 4 * (parameters * (2 + STATE) + max(batch, EVALUATED_AT_ONCE * units))


def largest_stack(settings: Settings, device: torch.device, workers: int) -> int:
    """How many nets are trained at once: on a GPU what free memory holds, one on a CPU."""
    free = free_bytes(device) if device.type == "cuda" else None
    if free is None:
        return 1  # stacks are not faster on a CPU
    fitting = int(SHARE_OF_MEMORY * free) // (workers * bytes_of_net(settings))
    return max(1, min(LARGEST_STACK, fitting))


def train_stack(
    trials: Sequence[Trial], data: Split, on_step: OnStep = lambda: None
) -> list[dict[str, Any]]:
    """Train all of them in lockstep; returns the `result` of each trial's file.

    Equal to training each by itself up to rounding, but the trials have no seconds of their own.

    Raises:
        ValueError: the trials are not `stackable` with each other.
    """
    if len(set(map(stackable, trials))) != 1:
        raise ValueError("stacked trials differ in nothing but their seeds and hyper-parameters")
    first, settings, device = trials[0], trials[0].settings, data.images.device
    by_seed = {trial.settings.seed: initial_net(trial.settings).to(device) for trial in trials}
    nets = StackedNets([by_seed[trial.settings.seed] for trial in trials])
    optimizer = stacked_optimizer([nets.parameter], [trial.settings for trial in trials])
    # torch's schedulers change one learning rate: here, the factor of all of them.
    factor = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(factor, settings)
    lr = optimizer.param_groups[0]["lr"]
    rates = lr.clone()
    histories = [History(trial) for trial in trials]
    losses = torch.full((settings.steps, len(trials)), math.nan, device=device)
    unknown = [(math.nan, math.nan)] * len(trials)
    evaluated = done = 0

    def add_evaluation() -> None:
        nonlocal evaluated
        validation = _evaluate(nets, data.validation_images, data.validation_labels)
        test = unknown
        if uses_test_set(first, done):
            test = _evaluate(nets, data.test_images, data.test_labels)
        for k, history in enumerate(histories):
            if history.diverged_at_step is None:
                history.add_evaluation(
                    done, losses[evaluated:done, k].cpu(), None, validation[k], test[k]
                )
        evaluated = done

    add_evaluation()
    step = step_for(device)(nets, optimizer, stacked_cross_entropy)
    for loss in train(step, _batches(trials, data)):
        if scheduler is not None:
            factor.step()
            scheduler.step()
            lr.copy_(rates * factor.param_groups[0]["lr"])
        losses[done] = loss
        done += 1
        on_step()
        if is_evaluated(first, done):
            _add_gradient_norms(histories, done, by_seed[settings.seed], nets)
            add_evaluation()
        is_end_of_epoch = done % settings.steps_per_epoch == 0
        if is_end_of_epoch and all(h.diverged_at_step is not None for h in histories):
            break
    training = unknown
    if first.phase == FINAL:
        training = _evaluate(nets, data.images, data.labels)
    return [history.result(None, training[k]) for k, history in enumerate(histories)]


def _batches(trials: Sequence[Trial], data: Split) -> Iterator[Batch]:
    """The batches of each trial's seed, stacked."""
    settings = trials[0].settings
    seeds = sorted({trial.settings.seed for trial in trials})
    of_trials = torch.tensor([seeds.index(trial.settings.seed) for trial in trials])
    of_trials = of_trials.to(data.labels.device)
    for epoch in range(1, settings.epochs + 1):
        orders = (shuffled(data.labels, settings.batch_size, seed, epoch) for seed in seeds)
        for indices in map(torch.stack, zip(*orders, strict=True)):
            yield data.images[indices[of_trials]], data.labels[indices[of_trials]]


@torch.no_grad()
def _evaluate(nets: StackedNets, images: Tensor, labels: Tensor) -> list[tuple[float, float]]:
    """Mean loss and accuracy of each net."""
    count, device = len(nets.parameter), images.device
    loss = torch.zeros(count, dtype=torch.float64, device=device)
    right = torch.zeros(count, dtype=torch.int64, device=device)
    batches = (images.split(EVALUATED_AT_ONCE), labels.split(EVALUATED_AT_ONCE))
    for inputs, targets in zip(*batches, strict=True):
        scores = nets.of_same(inputs)
        loss += stacked_cross_entropy(scores, targets).double() * len(targets)
        right += (scores.argmax(2) == targets).sum(1)
    means = torch.stack([loss, right.double()], 1) / len(labels)
    return [(mean_loss, accuracy) for mean_loss, accuracy in means.tolist()]


def _add_gradient_norms(
    histories: list[History], step: int, net: nn.Module, nets: StackedNets
) -> None:
    layers = list(weights_by_layer(net))
    by_name = nets.by_name(cast(Tensor, nets.parameter.grad))
    gradients = [by_name[f"{name}.weight"] for name in layers]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients], 1).tolist()
    for history, of_net in zip(histories, norms, strict=True):
        if history.diverged_at_step is None:
            history.add_gradient_norms(step, dict(zip(layers, of_net, strict=True)))


class Stacked(ScratchOptimizer):
    """A mixin for an optimizer's class: a group's options may be tensors, a number for each trial.

    The first dimension of every parameter is the trial.
    """

    def engine(self, group: Group) -> Engine:
        return run_stacked

    def columns(self, group: Group) -> dict[str, str]:
        return super().columns(_largest(group))

    def new_state(self, p: Tensor, group: Group) -> dict[str, Tensor]:
        return super().new_state(p, _largest(group))

    def scalars(self, t: Any, group: Group) -> dict[str, Any]:
        decoupled = group.get("decoupled_weight_decay", False)
        penalised = not decoupled and _largest(group)["weight_decay"] > 0
        l2 = group["weight_decay"] if penalised else None
        return super().scalars(t, group) | {"gradient.l2": l2}

    def _gradient(self, group: Group, inverse_scale: Any) -> Scalars:
        return dict.fromkeys(GRADIENT)  # the penalty is one of the scalars, a number for each trial


class Numbers(Tensor):
    """An option, a number for each trial. What the host has to know of it needs no look at a GPU.

    Attributes:
        largest: of the numbers.
        all_true: whether none of them is zero.
    """

    largest: float
    all_true: bool

    # So that results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self.all_true or super().__bool__()  # which refuses several numbers


def _largest(group: Group) -> Group:
    """An option that is zero may need less state: keep what any of the trials needs."""
    return {k: v.largest if isinstance(v, Numbers) else v for k, v in group.items()}


def run_stacked(rule: Callable[..., None], table: Table, scalars: dict[str, Any]) -> None:
    """Run a rule on stacks, some trials at a time, each with its own scalars."""
    for row in table.rows():
        p = row["p"]
        at_once = max(1, block_size(p) // p[0].numel())
        for start in range(0, len(p), at_once):
            part = slice(start, start + at_once)
            block = {symbol: tensor[part] for symbol, tensor in row.items()}
            own = {k: _broadcastable(v, part, p) for k, v in scalars.items()}
            gradient = {name: own.pop(name, None) for name in GRADIENT}
            functional(descending(rule, gradient), block, own)


run_stacked.takes_tensors = True  # type: ignore[attr-defined]  # so it is asked in graphs, too


def _broadcastable(value: Any, part: slice, p: Tensor) -> Any:
    """The numbers of some trials, shaped to broadcast along their parameters."""
    if not isinstance(value, Tensor):
        return value
    return value.expand(len(p))[part].to(p).view(-1, *[1] * (p.ndim - 1))


def stacked_optimizer(parameters: Any, settings: Sequence[Settings]) -> torch.optim.Optimizer:
    """One optimizer for the stacked parameters of trials that have the same algorithm.

    On a GPU it is capturable, and there must be one stack.
    """
    parameters = list(parameters)
    device = parameters[0].device
    algorithm = OPTIMIZERS[settings[0].optimizer].scratch
    assert isinstance(algorithm, type), "an optimizer is made by its class"
    stacked = cast(Any, type(f"Stacked{algorithm.__name__}", (Stacked, algorithm), {}))
    keywords = [of_trial.keywords() for of_trial in settings]
    options = keywords[0] | capturable_options(settings[0], device)
    optimizer: torch.optim.Optimizer = stacked(parameters, **options)
    for name in keywords[0]:
        values = [of_trial[name] for of_trial in keywords]
        optimizer.param_groups[0][name] = _numbers(values, device)
    return optimizer


def _numbers(values: list[Any], device: torch.device) -> Any:
    if isinstance(values[0], tuple):
        return tuple(_numbers(list(column), device) for column in zip(*values, strict=True))
    # In double precision, as Python's floats: the optimizers compute their scalars from these.
    numbers = torch.tensor(values, dtype=torch.float64, device=device).as_subclass(Numbers)
    numbers.largest, numbers.all_true = max(values), all(values)
    return numbers
