"""Time the steps of optimizers, ours and torch's in turn, on parameters of given shapes.

A *group* is one algorithm on one set of parameters; its implementations are timed together, in
rounds. In each round every implementation is visited once, in random order, so that whatever else
the machine does meets all alike. A copy of a big tensor is visited, too: the bandwidth that it
reaches is the limit of every step.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
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

MEASURED, UNAVAILABLE, FAILED = "measured", "not available", "failed"
APART, SHARED = "apart", "shared"

IN_CACHE = (
    2**27
)  # bytes; a step over less than this is timed with its data as the last step left it

Cell = dict[str, Any]
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
class Entrant:
    """One implementation in a group, and its times."""

    name: str
    device: torch.device
    work: Callable[[], object]
    optimizer: torch.optim.Optimizer | None = None  # the copy of the big tensor has none
    first_step: float = math.nan
    peak: int | None = None
    rounds: int = 0
    steps: int = 0
    seconds: list[float] = field(default_factory=list)

    def step(self) -> None:
        self.work()
        self.steps += 1

    def visit(self, untimed: int, timed: int) -> None:
        for _ in range(untimed):
            self.step()
        self.seconds += [self.time() for _ in range(timed)]
        self.rounds += 1

    def time(self) -> float:
        _wait(self.device)
        began = time.perf_counter()
        self.work()
        _wait(self.device)
        seconds = time.perf_counter() - began
        self.steps += 1
        return seconds

    def tensors(self) -> list[Tensor]:
        """All that it reads and writes."""
        if self.optimizer is None:
            return []
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        return parameters + gradients + state_of(self.optimizer)

    def result(self) -> Cell:
        return {
            "status": MEASURED,
            "median_ms": 1e3 * statistics.median(self.seconds),
            "p90_ms": 1e3 * percentile(self.seconds, 0.9),
            "rounds": self.rounds,
            "steps": len(self.seconds),
            "first_step_ms": 1e3 * self.first_step,
            "peak_extra_bytes": self.peak,
        }

    def has_enough(self, effort: Effort) -> bool:
        slow = self.rounds >= effort.few_rounds and math.fsum(self.seconds) >= effort.seconds
        return slow or self.rounds >= effort.rounds


class Stopwatch:
    """Times one group after another on a device.

    It remembers which implementations have run: only the first run of one pays for compilation.
    """

    def __init__(self, device: torch.device, effort: Effort, seed: int) -> None:
        self._device, self._effort, self._seed = device, effort, seed
        self._have_run: set[tuple[str, str]] = set()
        elements = effort.copied_bytes // 4
        self._source = torch.ones(elements, device=device)
        self._target = torch.zeros(elements, device=device)

    def measure(
        self,
        model: str,
        shapes: Sequence[Shape],
        optimizer: str,
        implementations: Sequence[str],
        on_progress: OnProgress = lambda stage, share: None,
    ) -> list[Cell]:
        """One cell for each implementation: its times, or the reason why there are none."""
        columns = state_columns(OPTIMIZERS[optimizer])
        numbers = sum(map(math.prod, shapes))
        one = 4 * numbers * (2 + columns)  # bytes of parameters, gradients and state
        layout = APART if one * len(implementations) <= self._budget() else SHARED
        visit = (1, self._effort.steps_in_cache) if one < IN_CACHE else (0, 1)
        moved = 4 * (2 + 1 + 2 * columns)  # p, g and state are read, p and state are written

        base = make_parameters(shapes, self._seed, self._device)
        entrants, problems = self._enter(optimizer, implementations, base, layout, on_progress)
        copy = Entrant("copy", self._device, lambda: self._target.copy_(self._source))
        copy.step()
        chance = random.Random(f"{self._seed} {model} {optimizer}")
        self._take_rounds(entrants, copy, visit, chance, on_progress)
        if layout == APART:
            on_progress("comparing results", 1.0)
            for name in differing(entrants):
                problems[name] = {"status": FAILED, "reason": "its results differ from torch's"}
            entrants = [entrant for entrant in entrants if entrant.name not in problems]

        common = {
            "denormals_in_group": sum(count_denormals(entrant.tensors()) for entrant in entrants),
            "bytes_per_parameter": moved,
            "memory": layout,
            "timed_steps_per_visit": visit[1],
        }
        measured = {}
        for entrant in entrants:
            seconds = statistics.median(entrant.seconds)
            bandwidth = 2 * self._effort.copied_bytes / statistics.median(copy.seconds)
            measured[entrant.name] = (
                entrant.result()
                | common
                | {
                    "first_in_process": (optimizer, entrant.name) not in self._have_run,
                    "copy_bytes_per_second": bandwidth,
                    "bandwidth_share": moved * numbers / seconds / bandwidth,
                }
            )
            self._have_run.add((optimizer, entrant.name))
        return [
            {"model": model, "optimizer": optimizer, "implementation": name}
            | (measured.get(name) or problems[name])
            for name in implementations
        ]

    def _budget(self) -> int:
        free = free_bytes(self._device)
        budget = self._effort.memory_budget
        return budget if free is None else min(budget, free // 2)

    def _enter(
        self,
        optimizer: str,
        implementations: Sequence[str],
        base: list[nn.Parameter],
        layout: str,
        on_progress: OnProgress,
    ) -> tuple[list[Entrant], dict[str, Cell]]:
        """Those that could take their first steps, warmed up; and why the others could not."""
        entrants: list[Entrant] = []
        problems: dict[str, Cell] = {}
        state: dict[tuple[int, str], Tensor] = {}
        for name in implementations:
            on_progress(f"first steps, {name}", 0.0)
            # The last one may have the originals.
            own = base if layout == SHARED or name == implementations[-1] else cloned(base)
            try:
                entrant = _begin(name, OPTIMIZERS[optimizer], own, self._device)
            except NotImplementedError as reason:
                problems[name] = {"status": UNAVAILABLE, "reason": _first_line(reason)}
                continue
            except (RuntimeError, TypeError, ValueError) as reason:
                problems[name] = {"status": FAILED, "reason": _first_line(reason)}
                continue
            if layout == SHARED and entrant.optimizer is not None:
                share_state(entrant.optimizer, state)
            for _ in range(self._effort.warm_up):
                entrant.step()
            peaks = [peak_extra_bytes(entrant.step, self._device) for _ in range(3)]
            known = [peak for peak in peaks if peak is not None]
            entrant.peak = int(statistics.median(known)) if known else None
            entrants.append(entrant)
        return entrants, problems

    def _take_rounds(
        self,
        entrants: list[Entrant],
        copy: Entrant,
        visit: tuple[int, int],
        chance: random.Random,
        on_progress: OnProgress,
    ) -> None:
        going = entrants
        with _no_garbage_collection():
            while going:
                for entrant in chance.sample([*going, copy], len(going) + 1):
                    entrant.visit(*((0, 1) if entrant is copy else visit))
                on_progress("timing", going[0].rounds / self._effort.rounds)
                going = [e for e in going if not e.has_enough(self._effort)]


def _begin(
    name: str, entry: OptimizerEntry, parameters: list[nn.Parameter], device: torch.device
) -> Entrant:
    """An entrant that has taken its first step, timed apart: it makes the state and compiles."""
    optimizer = maker(name, entry, lr=LR)(parameters)
    entrant = Entrant(name, device, optimizer.step, optimizer)
    entrant.first_step = entrant.time()
    return entrant


def differing(entrants: Sequence[Entrant]) -> list[str]:
    """Those whose parameters or state differ from the last one's after as many steps.

    Where two round differently, they may be some units in the last place apart.
    """
    for entrant in entrants:
        while entrant.steps < max(other.steps for other in entrants):
            entrant.step()

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-5, atol=0)

    reference = entrants[-1].tensors() if entrants else []
    return [
        entrant.name
        for entrant in entrants
        if not all(same(*pair) for pair in zip(entrant.tensors(), reference, strict=True))
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Between the neighbours in rank, in proportion."""
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (place - below) * (ranked[above] - ranked[below])


def _first_line(reason: Exception) -> str:
    return next(iter(str(reason).splitlines()), type(reason).__name__)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
