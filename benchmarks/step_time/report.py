"""Table and chart of step times, made from what was recorded. Nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.common.implementations import ENGINES, IMPLEMENTATIONS, SIDES
from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import (
    Shape,
    among,
    many,
    number,
    perhaps,
    positive,
    shaped,
    text,
    whole,
    yes_or_no,
)
from benchmarks.common.shapes import MODELS
from benchmarks.step_time.timer import APART, FAILED, MEASURED, SHARED, UNAVAILABLE

Recorded = dict[str, Any]

EQUAL = 0.03  # a ratio this close to 1 is called equal
NONE = "-"
UNREST = 2.0  # a p90 of that many medians says that something else was running

EXPLANATION = (
    "Medians of `optimizer.step()` alone, ours divided by torch's: below 1 ours is faster. "
    "A best is the fastest of a side's default, loop, foreach and fused engines. "
    f"Equal: within {EQUAL:.0%}. No value is denormal: that would slow a CPU down."
)
GPU_EXPLANATION = (
    "On the GPU, ms are those between two events on the device, which is idle at first: they "
    "include its waits for the host. Host ms: until the call returns; where they come near the ms, "
    "the host is the limit. Launches: kernel launches of one step."
)

CELL: Shape = {
    "model": among(MODELS),
    "optimizer": among(OPTIMIZERS),
    "implementation": among(IMPLEMENTATIONS),
}
TIMES: Shape = {
    **dict.fromkeys(("median_ms", "p90_ms", "first_step_ms", "bandwidth_share"), positive),
    **dict.fromkeys(("rounds", "steps", "denormals_in_group", "bytes_per_parameter"), whole()),
    "peak_extra_bytes": perhaps(number),
    "memory": among((APART, SHARED)),
    "first_in_process": yes_or_no,
}
ON_GPU: Shape = {"host_ms": positive, "launches": whole()}


def _is_of_gpu(cell: Recorded) -> bool:
    return any(name in cell for name in ON_GPU)


def _is_cell(value: Any) -> bool:
    """Whether these are the times of one implementation, or the reason why there are none."""
    status = value.get("status") if isinstance(value, dict) else None
    times = {**TIMES, **ON_GPU} if status == MEASURED and _is_of_gpu(value) else TIMES
    rest = {MEASURED: times, UNAVAILABLE: {"reason": text}, FAILED: {"reason": text}}
    return status in rest and shaped({**CELL, **rest[status]})(value)


RECORDED: Shape = {"cells": many(_is_cell)}


@dataclass(frozen=True)
class Group:
    """One algorithm on one set of parameters, timed in all implementations that there are."""

    model: str
    optimizer: str
    cells: dict[str, Recorded]

    def median(self, implementation: str) -> float | None:
        cell = self.cells.get(implementation, {})
        return float(cell["median_ms"]) if cell.get("status") == MEASURED else None

    def best(self, side: str) -> tuple[str, float] | None:
        """The engine of the fastest implementation, and its milliseconds."""
        times = [(self.median(f"{side}-{engine}"), engine) for engine in ENGINES]
        known = [(ms, engine) for ms, engine in times if ms is not None]
        if not known:
            return None
        ms, engine = min(known)
        return engine, ms

    def ratio(self, ours: str, theirs: str) -> float | None:
        a, b = self.median(f"ours-{ours}"), self.median(f"torch-{theirs}")
        return None if a is None or b is None else a / b

    def ratio_of_bests(self) -> float | None:
        ours, theirs = self.best("ours"), self.best("torch")
        return None if ours is None or theirs is None else ours[1] / theirs[1]

    def verdict(self) -> str:
        ratio = self.ratio_of_bests()
        if ratio is None:
            return NONE
        if abs(ratio - 1) <= EQUAL:
            return "equal"
        return f"**ours, {1 / ratio:.2f}×**" if ratio < 1 else f"torch, {ratio:.2f}×"


def groups_of(recorded: Recorded) -> list[Group]:
    rows: dict[tuple[str, str], Group] = {}
    for cell in recorded["cells"]:
        key = cell["model"], cell["optimizer"]
        rows.setdefault(key, Group(*key, {})).cells[cell["implementation"]] = cell
    return list(rows.values())


HEADINGS = (
    "parameters", "optimizer", "faster", "our best / torch's best", "our best, ms",
    "torch's best, ms", "default / default", "loop / loop", "foreach / foreach", "fused / fused",
    "our fused / torch's default",
)  # fmt: skip


def ratio_table(recorded: Recorded) -> str:
    lines = [list(HEADINGS)]
    for row in groups_of(recorded):
        ratios = [row.ratio(engine, engine) for engine in ENGINES] + [row.ratio("fused", "default")]
        lines.append(
            [
                recorded["models"][row.model]["title"],
                OPTIMIZERS[row.optimizer].title,
                row.verdict(),
                _number(row.ratio_of_bests()),
                _best(row, "ours"),
                _best(row, "torch"),
                *map(_number, ratios),
            ]
        )
    return markdown(lines, texts=3)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _best(group: Group, side: str) -> str:
    best = group.best(side)
    return NONE if best is None else f"{best[1]:.3g} ({best[0]})"


def doubts(recorded: Recorded) -> str | None:
    """A warning, if there is reason for one."""
    cells = [cell for cell in recorded["cells"] if cell["status"] == MEASURED]
    parts = []
    if unsteady := [cell for cell in cells if cell["p90_ms"] > UNREST * cell["median_ms"]]:
        names = "; ".join(
            f"{recorded['models'][cell['model']]['title']}, "
            f"{OPTIMIZERS[cell['optimizer']].title}, {cell['implementation']}"
            for cell in unsteady
        )
        parts.append(
            f"{len(unsteady)} of {len(cells)} measurements are unsteady (p90 above {UNREST:g} "
            f"medians), because the machine was busy with something else: {names}."
        )
    if any(cell["denormals_in_group"] for cell in cells):
        parts.append("There were denormal values.")
    return f"Do not trust these times. {' '.join(parts)}" if parts else None


def report(recorded: Recorded) -> str:
    """step_time.md: who is faster, then every measurement."""
    machine, settings = recorded["machine"], recorded["settings"]
    device = machine["device"]
    parts = [
        "# The time of a step",
        f"{device}, {machine['processor']}, {machine['torch_threads']} threads, "
        f"torch {recorded['versions']['torch']}, budget {settings['budget']}, "
        f"seed {settings['seed']}.",
        ratio_table(recorded),
        EXPLANATION,
        *([f"**{warning}**"] if (warning := doubts(recorded)) else []),
        "![Ratios of step times](step_time.png)",
        "## Every measurement",
        _all_measurements(recorded),
        "/ torch: divided by torch's best. First step: makes the state; the first step of a fused "
        "implementation in a process compiles as well, which takes less if torch's compile cache "
        "on disk has it (* marks an implementation's first use in the process). Extra memory: the "
        "rise of the process's peak during a step. Bandwidth: the algorithm's least traffic (bytes "
        "per parameter: parameter, gradient and state read, parameter and state written), divided "
        "by time, as a share of what a copy of a big tensor reaches beside it; parameters that fit "
        f"into caches may exceed it. Memory: {APART}, every implementation has its own parameters, "
        f"gradients and state; {SHARED}, all work on the same ones.",
        *([GPU_EXPLANATION] if any(map(_is_of_gpu, recorded["cells"])) else []),
    ]
    problems = [
        f"* {cell['model']}, {cell['optimizer']}, {cell['implementation']}: {cell['status']}: "
        f"{cell['reason']}"
        for cell in recorded["cells"]
        if cell["status"] != MEASURED
    ]
    if problems:
        parts += ["## Not measured", "\n".join(problems)]
    return "\n\n".join(parts) + "\n"


def _all_measurements(recorded: Recorded) -> str:
    on_gpu = any(map(_is_of_gpu, recorded["cells"]))
    lines = [
        [
            "parameters", "optimizer", "implementation", "memory", "ms", "p90 ms", "/ torch",
            "rounds", "first step ms", "extra memory MiB", "bytes per parameter", "bandwidth",
            *(("host ms", "launches") if on_gpu else ()),
        ]
    ]  # fmt: skip
    for row in groups_of(recorded):
        best = row.best("torch")
        for name, cell in row.cells.items():
            if cell["status"] != MEASURED:
                continue
            peak = cell["peak_extra_bytes"]
            lines.append(
                [
                    recorded["models"][row.model]["title"],
                    OPTIMIZERS[row.optimizer].title,
                    name,
                    cell["memory"],
                    f"{cell['median_ms']:.3f}",
                    f"{cell['p90_ms']:.3f}",
                    _number(None if best is None else cell["median_ms"] / best[1]),
                    str(cell["rounds"]),
                    f"{cell['first_step_ms']:.1f}{'*' if cell['first_in_process'] else ''}",
                    "unknown" if peak is None else f"{peak / 2**20:.1f}",
                    str(cell["bytes_per_parameter"]),
                    f"{cell['bandwidth_share']:.0%}",
                    *((f"{cell['host_ms']:.3f}", str(cell["launches"])) if on_gpu else ()),
                ]
            )
    return markdown(lines, texts=4)


def terminal_table(recorded: Recorded) -> Table:
    """Who is faster, narrow enough for a terminal of 80 columns."""
    table = Table(title="ours / torch's", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    texts, numbers = ("parameters", "optimizer"), ("default", "best", "ours ms", "torch ms")
    for heading in (*texts, *numbers, "faster"):
        table.add_column(heading, justify="right" if heading in numbers else "left", no_wrap=True)
    for row in groups_of(recorded):
        table.add_row(
            recorded["models"][row.model]["title"],
            OPTIMIZERS[row.optimizer].title,
            _number(row.ratio("default", "default")),
            _number(row.ratio_of_bests()),
            *(NONE if best is None else f"{best[1]:.3g}" for best in map(row.best, SIDES)),
            row.verdict().strip("*"),
        )
    return table
