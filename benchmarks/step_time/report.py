"""Table and chart of step times, made from what was recorded. Nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich import box
from rich.table import Table

from benchmarks.common.implementations import ENGINES, IMPLEMENTATIONS, SIDES
from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import CAPTION, LABEL, TICK, TITLE, png
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
TOP = 2.5  # the highest bar; what is higher is cut off there, its number stays
NONE = "-"
UNREST = 2.0  # a p90 of that many medians says that something else was running

EXPLANATION = (
    "Medians of `optimizer.step()` alone, ours divided by torch's: below 1 ours is faster. "
    "A best is the fastest of a side's default, loop, foreach and fused implementations. "
    f"Equal: within {EQUAL:.0%}. No value is denormal: that would slow a CPU down."
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


def _is_cell(value: Any) -> bool:
    """Whether these are the times of one implementation, or the reason why there are none."""
    status = value.get("status") if isinstance(value, dict) else None
    rest = {MEASURED: TIMES, UNAVAILABLE: {"reason": text}, FAILED: {"reason": text}}
    return status in rest and shaped({**CELL, **rest[status]})(value)


RECORDED: Shape = {
    "models": lambda value: isinstance(value, dict) and value == {
        name: MODELS[name].describe() for name in value if name in MODELS
    },
    "machine": {"processor": text, "torch_threads": whole(), "device": text},
    "versions": {"torch": text},
    "cells": many(_is_cell),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
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


def rows_of(recorded: Recorded) -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for cell in recorded["cells"]:
        key = cell["model"], cell["optimizer"]
        rows.setdefault(key, Row(*key, {})).cells[cell["implementation"]] = cell
    return list(rows.values())


HEADINGS = (
    "parameters", "optimizer", "faster", "our best / torch's best", "our best, ms",
    "torch's best, ms", "default / default", "loop / loop", "foreach / foreach", "fused / fused",
    "our fused / torch's default",
)  # fmt: skip


def ratio_table(recorded: Recorded) -> str:
    lines = [list(HEADINGS)]
    for row in rows_of(recorded):
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


def _best(row: Row, side: str) -> str:
    best = row.best(side)
    return NONE if best is None else f"{best[1]:.3g} ({best[0]})"


def doubts(recorded: Recorded) -> str | None:
    """A warning, if there is reason for one."""
    cells = [cell for cell in recorded["cells"] if cell["status"] == MEASURED]
    parts = []
    if unsteady := sum(cell["p90_ms"] > UNREST * cell["median_ms"] for cell in cells):
        parts.append(
            f"{unsteady} of {len(cells)} measurements are unsteady (p90 above {UNREST:g} medians): "
            "the machine was busy with something else."
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
    lines = [
        [
            "parameters", "optimizer", "implementation", "memory", "ms", "p90 ms", "/ torch",
            "rounds", "first step ms", "extra memory MiB", "bytes per parameter", "bandwidth",
        ]
    ]  # fmt: skip
    for row in rows_of(recorded):
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
                ]
            )
    return markdown(lines, texts=4)


def terminal_table(recorded: Recorded) -> Table:
    """Who is faster, narrow enough for a terminal of 80 columns."""
    table = Table(title="ours / torch's best", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column, heading in enumerate(("parameters", "optimizer", "ours ms", "torch ms", "ratio")):
        table.add_column(heading, justify="left" if column < 2 else "right", no_wrap=True)
    table.add_column("faster", no_wrap=True)
    for row in rows_of(recorded):
        table.add_row(
            recorded["models"][row.model]["title"],
            OPTIMIZERS[row.optimizer].title,
            *(NONE if best is None else f"{best[1]:.3g}" for best in map(row.best, SIDES)),
            _number(row.ratio_of_bests()),
            row.verdict().strip("*"),
        )
    return table


def draw_ratios(recorded: Recorded) -> bytes:
    """Bars of ratios, a group for each set of parameters; below the line at 1 ours is faster."""
    rows = rows_of(recorded)
    models = list(dict.fromkeys(row.model for row in rows))
    optimizers = [name for name in OPTIMIZERS if any(row.optimizer == name for row in rows)]
    width = max(9.0, 1.5 + len(models) * (0.6 + 0.43 * len(optimizers)))
    figure = Figure(figsize=(width, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    stories = (
        (above, "Without arguments: our default ÷ torch's default",
         {(row.model, row.optimizer): row.ratio("default", "default") for row in rows}),
        (below, "The fastest of each: our best ÷ torch's best",
         {(row.model, row.optimizer): row.ratio_of_bests() for row in rows}),
    )  # fmt: skip
    for panel, title, ratios in stories:
        draw_bars(panel, models, optimizers, ratios)
        panel.set_title(title, fontsize=TITLE)
    titles = [recorded["models"][model]["title"] for model in models]
    below.set_xticks(range(len(models)), titles, fontsize=LABEL)
    patches = [Patch(color=OPTIMIZERS[name].colour, label=OPTIMIZERS[name].title)
               for name in optimizers]  # fmt: skip
    figure.legend(
        handles=patches, loc="outside lower center", ncols=6, fontsize=LABEL, frameon=False,
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    machine = recorded["machine"]
    place = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    figure.suptitle(
        f"time of a step on {place}: below the line ours is faster", fontsize=CAPTION, color="0.35"
    )
    return png(figure)


def draw_bars(
    panel: Axes,
    models: list[str],
    optimizers: list[str],
    ratios: dict[tuple[str, str], float | None],
) -> None:
    width = 0.86 / len(optimizers)
    for place, model in enumerate(models):
        for rank, optimizer in enumerate(optimizers):
            ratio = ratios.get((model, optimizer))
            x = place + (rank - (len(optimizers) - 1) / 2) * width
            if ratio is None:
                panel.text(x, 0.02, "none", ha="center", va="bottom", rotation=90, color="0.5")
                continue
            height = min(ratio, TOP)
            panel.bar(x, height, width * 0.9, color=OPTIMIZERS[optimizer].colour)
            foot = 1 if 0.9 < height < 1 else height  # the line must not strike a number out
            panel.text(x, foot + 0.02, f"{ratio:.2f}", ha="center", va="bottom", fontsize=11)
    panel.axhline(1, color="black", lw=2, zorder=3)
    known = [ratio for ratio in ratios.values() if ratio is not None]
    panel.set_ylim(0, max(1.3, min(max(known, default=1), TOP) * 1.12))
    panel.set_ylabel("ours ÷ torch", fontsize=LABEL)
    panel.tick_params(labelsize=TICK)
    panel.grid(True, axis="y", color="0.88")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
