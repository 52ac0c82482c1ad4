"""Time the steps of optimizers, ours and torch's in turn, on parameters of given shapes.

A *group* is one algorithm on one set of parameters; its implementations are timed together, in
rounds. In each round every implementation is visited once, in random order, so that whatever else
the machine does disturbs all of them equally. A copy of a big tensor is visited, too: the bandwidth
that it reaches is the limit of every step.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.implementations import (
    LR,
    cloned,
    count_denormals,
    make_parameters,
    maker,
    share_state,
    state_columns,
    state_of,
)
from benchmarks.common.memory import free_bytes, peak_extra_bytes
from benchmarks.common.optimizers import OPTIMIZERS, OptimizerEntry
from benchmarks.common.shapes import Shape
from benchmarks.step_time.clocks import Clock, Time, Work, clock_of

MEASURED, UNAVAILABLE, FAILED = "measured", "not available", "failed"
APART, SHARED = "apart", "shared"

IN_CACHE = (
    2**27
)  # bytes; a step over less than this is timed with its data as the last step left it

Timing = dict[str, Any]
OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured. An implementation leaves when it has `rounds` rounds, a slow one when
    it has `few_rounds` and was timed for `seconds`."""

    rounds: int = 30
    few_rounds: int = 10
    seconds: float = 2.0
    warm_up: int = 3
    steps_in_cache: int = 4  # timed in a row at each visit, after one untimed; else a single one
    copied_bytes: int = 2**28
    memory_budget: int = 10 * 2**30


QUICK = Effort(rounds=5, few_rounds=3, seconds=0.2, warm_up=2, copied_bytes=2**26)


@dataclass
class Implementation:
    """One implementation in a group, and its times."""

    name: str
    clock: Clock
    work: Work
    optimizer: torch.optim.Optimizer | None = None  # the copy of the big tensor has none
    first_step: float = math.nan
    peak: int | None = None
    rounds: int = 0
    steps: int = 0
    times: list[Time] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [each.seconds for each in self.times]

    def step(self) -> None:
        self.work()
        self.steps += 1

    def visit(self, untimed: int, timed: int) -> None:
        for _ in range(untimed):
            self.step()
        self.times += [self.time() for _ in range(timed)]
        self.rounds += 1

    def time(self) -> Time:
        measured = self.clock.time(self.work)
        self.steps += 1
        return measured

    def tensors(self) -> list[Tensor]:
        """All that it reads and writes."""
        if self.optimizer is None:
            return []
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        return parameters + gradients + state_of(self.optimizer)

    def result(self) -> Timing:
        return {
            "status": MEASURED,
            "median_ms": 1e3 * statistics.median(self.seconds),
            "p90_ms": 1e3 * percentile(self.seconds, 0.9),
            "rounds": self.rounds,
            "steps": len(self.seconds),
            "first_step_ms": 1e3 * self.first_step,
            "peak_extra_bytes": self.peak,
            **self.clock.details(self.times, self.step),
        }

    def has_enough(self, effort: Effort) -> bool:
        slow = self.rounds >= effort.few_rounds and math.fsum(self.seconds) >= effort.seconds
        return slow or self.rounds >= effort.rounds


class Timer:
    """Times one group after another on a device.

    It remembers which implementations have run: only the first run of one pays for compilation.
    """

    def __init__(self, device: torch.device, effort: Effort, seed: int) -> None:
        self._device, self._effort, self._seed = device, effort, seed
        self._clock = clock_of(device)
        self._have_run: set[tuple[str, str]] = set()
        elements = effort.copied_bytes // 4
        self._source = torch.ones(elements, device=device)
        self._target = torch.zeros(elements, device=device)

    def measure(
        self,
        model: str,
        shapes: Sequence[Shape],
        optimizer: str,
        names: Sequence[str],
        on_progress: OnProgress = lambda stage, share: None,
    ) -> list[Timing]:
        """One timing for each implementation: its times, or the reason why there are none."""
        columns = state_columns(OPTIMIZERS[optimizer])
        numbers = sum(map(math.prod, shapes))
        size = 4 * numbers * (2 + columns)  # bytes of parameters, gradients and state
        layout = APART if size * len(names) <= self._budget() else SHARED
        visit = (1, self._effort.steps_in_cache) if size < IN_CACHE else (0, 1)
        moved = 4 * (2 + 1 + 2 * columns)  # p, g and state are read, p and state are written

        base = make_parameters(shapes, self._seed, self._device)
        implementations, problems = self._prepare(optimizer, names, base, layout, on_progress)
        copy = Implementation("copy", self._clock, lambda: self._target.copy_(self._source))
        copy.step()
        chance = random.Random(f"{self._seed} {model} {optimizer}")
        self._take_rounds(implementations, copy, visit, chance, on_progress)
        if layout == APART:
            on_progress("comparing results", 1.0)
            for name in differing(implementations):
                problems[name] = {"status": FAILED, "reason": "its results differ from torch's"}
            implementations = [
                implementation
                for implementation in implementations
                if implementation.name not in problems
            ]

        common = {
            "denormals_in_group": sum(
                count_denormals(implementation.tensors()) for implementation in implementations
            ),
            "bytes_per_parameter": moved,
            "memory": layout,
            "timed_steps_per_visit": visit[1],
        }
        measured = {}
        for implementation in implementations:
            seconds = statistics.median(implementation.seconds)
            bandwidth = 2 * self._effort.copied_bytes / statistics.median(copy.seconds)
            measured[implementation.name] = (
                implementation.result()
                | common
                | {
                    "first_in_process": (optimizer, implementation.name) not in self._have_run,
                    "copy_bytes_per_second": bandwidth,
                    "bandwidth_share": moved * numbers / seconds / bandwidth,
                }
            )
            self._have_run.add((optimizer, implementation.name))
        return [
            {"model": model, "optimizer": optimizer, "implementation": name}
            | (measured.get(name) or problems[name])
            for name in names
        ]

    def _budget(self) -> int:
        free = free_bytes(self._device)
        budget = self._effort.memory_budget
        return budget if free is None else min(budget, free // 2)

    def _prepare(
        self,
        optimizer: str,
        names: Sequence[str],
        base: list[nn.Parameter],
        layout: str,
        on_progress: OnProgress,
    ) -> tuple[list[Implementation], dict[str, Timing]]:
        """Those that could take their first steps, warmed up; and why the others could not."""
        implementations: list[Implementation] = []
        problems: dict[str, Timing] = {}
        state: dict[tuple[int, str], Tensor] = {}
        for name in names:
            on_progress(f"first steps, {name}", 0.0)
            # The last one may have the originals.
            own = base if layout == SHARED or name == names[-1] else cloned(base)
            try:
                implementation = _begin(name, OPTIMIZERS[optimizer], own, self._clock)
            except NotImplementedError as reason:
                problems[name] = {"status": UNAVAILABLE, "reason": _first_line(reason)}
                continue
            except (RuntimeError, TypeError, ValueError) as reason:
                problems[name] = {"status": FAILED, "reason": _first_line(reason)}
                continue
            if layout == SHARED and implementation.optimizer is not None:
                share_state(implementation.optimizer, state)
            for _ in range(self._effort.warm_up):
                implementation.step()
            peaks = [peak_extra_bytes(implementation.step, self._device) for _ in range(3)]
            known = [peak for peak in peaks if peak is not None]
            implementation.peak = int(statistics.median(known)) if known else None
            implementations.append(implementation)
        return implementations, problems

    def _take_rounds(
        self,
        implementations: list[Implementation],
        copy: Implementation,
        visit: tuple[int, int],
        chance: random.Random,
        on_progress: OnProgress,
    ) -> None:
        active = implementations
        with _no_garbage_collection():
            while active:
                for implementation in chance.sample([*active, copy], len(active) + 1):
                    implementation.visit(*((0, 1) if implementation is copy else visit))
                on_progress("timing", active[0].rounds / self._effort.rounds)
                active = [i for i in active if not i.has_enough(self._effort)]


def _begin(
    name: str, entry: OptimizerEntry, parameters: list[nn.Parameter], clock: Clock
) -> Implementation:
    """An implementation after its first step, timed apart: it makes the state and compiles."""
    optimizer = maker(name, entry, lr=LR)(parameters)
    implementation = Implementation(name, clock, optimizer.step, optimizer)
    implementation.first_step = implementation.time().seconds
    return implementation


def differing(implementations: Sequence[Implementation]) -> list[str]:
    """Those whose parameters or state differ from the last one's after as many steps.

    Where two round differently, they may be some units in the last place apart.
    """
    for implementation in implementations:
        while implementation.steps < max(other.steps for other in implementations):
            implementation.step()

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-5, atol=0)

    reference = implementations[-1].tensors() if implementations else []
    return [
        implementation.name
        for implementation in implementations
        if not all(same(*pair) for pair in zip(implementation.tensors(), reference, strict=True))
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Between the neighbours in rank, in proportion."""
    ranked = sorted(values)
    rank = share * (len(ranked) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (rank - below) * (ranked[above] - ranked[below])


def _first_line(reason: Exception) -> str:
    return next(iter(str(reason).splitlines()), type(reason).__name__)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """As in timeit: a collection would be charged to whoever steps just then."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
