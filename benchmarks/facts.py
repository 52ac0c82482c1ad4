"""Tables of the documentation, read off the code and the recorded results.

What stands in them cannot go stale: state is made to be looked at, a rule is run to see what it
writes, and times come from `benchmarks/results/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.option_cases import Options
from benchmarks.common.record import GPU, provenance, read_json
from benchmarks.equivalence.report import EXPLANATION as ULPS
from benchmarks.equivalence.report import verdict, worst_table
from benchmarks.gradient_release.__main__ import in_words
from benchmarks.mnist.report import EXPLANATION as MNIST
from benchmarks.mnist.report import Pair, markdown_table
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.table import EXPLANATION as REPRODUCTIONS
from benchmarks.reproductions.table import markdown_tables, summary_of_checks, with_cases
from benchmarks.reproductions.table import summary as summary_of_cases
from benchmarks.seeds.report import markdown_text as seeds_text
from benchmarks.step_time.report import EXPLANATION as STEP_TIMES
from benchmarks.step_time.report import ratio_table
from benchmarks.study.report.tables import site_table
from benchmarks.study.report.texts import in_short
from torch_scratch_optim import ScratchOptimizer
from torch_scratch_optim._fused import split
from torch_scratch_optim._kernels import Signature, source
from torch_scratch_optim.engines import GRADIENT

RESULTS = Path(__file__).parent / "results"

Table = Callable[..., str]


def on_each_machine(command: str) -> Callable[[Table], Table]:
    """Make a table of the results of a CPU and, where there are some, one of those of a GPU."""

    def decorate(table: Table) -> Table:
        def tables(*arguments: str) -> str:
            folders = [RESULTS / command, RESULTS / GPU / command]
            found = [folder for folder in folders if folder.exists()]
            return "\n\n".join(table(folder, *arguments) for folder in found)

        return tables

    return decorate


# The options that make a rule keep more state.
MORE_STATE: Options = {"momentum": 0.9, "amsgrad": True, "centered": True}


def variants(name: str) -> Iterator[tuple[str, ScratchOptimizer]]:
    """An optimizer of one 2 × 3 parameter as it is by default, and with each option for more."""
    entry = OPTIMIZERS[name]
    defaults = entry.scratch([torch.zeros(1, requires_grad=True)], **entry.options).defaults
    for options in [{}, *({k: v} for k, v in MORE_STATE.items() if k in defaults)]:
        p = torch.zeros(2, 3, requires_grad=True)
        made = entry.scratch([p], **(dict(entry.options) | options))
        assert isinstance(made, ScratchOptimizer)
        yield ", ".join(f"`{k}={v}`" for k, v in options.items()) or "by default", made


def checkpoint(name: str) -> str:
    """The keys of a parameter's state and of a group."""
    lines: dict[str, list[str]] = {}
    for when, optimizer in variants(name):
        (group,) = optimizer.param_groups
        (p,) = group["params"]
        symbols = {key: symbol for symbol, key in optimizer.columns(group).items()}
        for key, value in optimizer.new_state(p, group).items() if symbols else ():
            what = [f"`{list(value.shape)}`", f"`{value.dtype}`"]
            if value.shape == p.shape:
                what = ["the parameter's"] * 2
            lines.setdefault(key, [f"`{key}`", f"`{symbols.get(key, 't')}`", *what, when])
    theirs = OPTIMIZERS[name].reference([torch.zeros(1, requires_grad=True)]).defaults
    group.pop("params")
    keys = [f"`{key}`" + ("" if key in theirs else " (not in torch's)") for key in group]
    headings = ["key", "symbol in the rule", "shape", "dtype", "kept"]
    table = markdown([headings, *lines.values()], texts=5)
    return f"{table}\n\nKeys of a group, apart from `params`: {', '.join(keys)}."


def traffic(optimizer: ScratchOptimizer) -> tuple[list[str], list[str]]:
    """The symbols that a step reads and those that it writes, found by taking one."""
    (group,) = optimizer.param_groups
    tensors = {x: torch.ones(1) for x in ("p", "g", *optimizer.columns(group))}
    before = {x: tensor._version for x, tensor in tensors.items()}
    scalars = optimizer.scalars(2.0, group)
    if not optimizer.counts_steps:
        scalars["first"] = False
    optimizer.rule(**tensors, **scalars)
    return list(tensors), [x for x, tensor in tensors.items() if tensor._version > before[x]]


def bytes_per_parameter(optimizer: ScratchOptimizer, itemsize: int = 4) -> int:
    return itemsize * sum(map(len, traffic(optimizer)))


def cost(name: str) -> str:
    """What a step must read and write."""
    lines = [["", "reads", "writes", "state, bytes", "traffic, bytes"]]
    for when, optimizer in variants(name):
        reads, writes = traffic(optimizer)
        size = bytes_per_parameter(optimizer)
        line = [when, *(" ".join(f"`{x}`" for x in xs) for xs in (reads, writes))]
        lines.append([*line, str(4 * (len(reads) - 2)), str(size)])
    # An option that is on already changes nothing.
    lines = [line for i, line in enumerate(lines) if line[1:] not in [x[1:] for x in lines[:i]]]
    return markdown(lines, texts=3) + "\n\nPer parameter in float32."


@on_each_machine("step_time")
def speed(results: Path, *names: str) -> str:
    """The recorded times of a step, ours and torch's, of all optimizers or of some."""
    recorded = read_json(results / "step_time.json")
    own = recorded | {
        "cells": [c for c in recorded["cells"] if not names or c["optimizer"] in names]
    }
    return "\n\n".join([provenance(recorded, recorded["command"]), ratio_table(own), STEP_TIMES])


@on_each_machine("mnist")
def mnist_table(results: Path) -> str:
    summary = read_json(results / "summary.json")
    return "\n".join(
        [
            f"{summary['dataset']}, {provenance(summary, summary['command'])}",
            "",
            markdown_table(recorded_pairs(summary)),
            "",
            MNIST,
        ]
    )


@on_each_machine("study")
def study_table(results: Path) -> str:
    summary = read_json(results / "summary.json")
    comparisons = [one for one in summary["comparisons"] if one["search_space"] == "lr"]
    return "\n\n".join(
        [
            f"{summary['dataset']}, {summary['provenance']}",
            site_table(comparisons).markdown(),
            *in_short(comparisons),
        ]
    )


def reproductions_table() -> str:
    recorded = read_json(RESULTS / "reproductions" / "reproductions.json")
    results = with_cases(recorded["cases"], CASES)
    return "\n\n".join(
        [
            provenance(recorded, recorded["command"]),
            f"{summary_of_cases(results)}. {summary_of_checks(results)}.",
            REPRODUCTIONS,
            markdown_tables(results),
        ]
    )


@on_each_machine("seeds")
def seeds(results: Path) -> str:
    recorded = read_json(results / "seeds.json")
    settings = recorded["settings"]
    return "\n\n".join(
        [
            f"{settings['dataset']}, {settings['train_size']:,} training images, "
            f"{settings['epochs']} epochs, {provenance(recorded, recorded['command'])}",
            seeds_text(recorded),
        ]
    )


@on_each_machine("gradient_release")
def gradient_release(results: Path) -> str:
    recorded = read_json(results / "gradient_release.json")
    runs = recorded["runs"]
    pairs = zip(runs[::2], runs[1::2], strict=True)
    lines = [f"* {in_words(usual, released)}." for usual, released in pairs]
    where = provenance(recorded, recorded["command"])
    return "\n".join([*lines, "", where])


def recorded_pairs(summary: dict[str, Any]) -> list[Pair]:
    runs = {(run["net"], run["optimizer"], run["implementation"]): run for run in summary["runs"]}
    return [
        Pair(
            runs[found["net"], found["optimizer"], "scratch"] | {"comparison": found},
            runs[found["net"], found["optimizer"], "torch"],
        )
        for found in summary["comparisons"]
    ]


@on_each_machine("equivalence")
def atlas(results: Path) -> str:
    recorded = read_json(results / "equivalence.json")
    lines = "\n".join(f"* {line}" for line in verdict(recorded).splitlines())
    where = provenance(recorded, recorded["command"])
    return "\n\n".join([where, lines, worst_table(recorded), ULPS])


def findings(experiment: str) -> str:
    """The claims that an experiment of `challenges` tests, beside what was measured."""
    recorded = read_json(RESULTS / "challenges" / experiment / "facts.json")
    head = ["claim", "measured", "verdict"]
    rows = [[finding[key] for key in head] for finding in recorded["findings"]]
    where = provenance(recorded, f"python -m benchmarks.challenges {experiment}")
    return f"{markdown([head, *rows], texts=3)}\n\n{where}"


def kernel(name: str) -> str:
    """What a rule writes for a CPU, by default and in float32."""
    _, optimizer = next(variants(name))
    (group,) = optimizer.param_groups
    (p,) = group["params"]
    columns = ("p", "g", *optimizer.columns(group))
    flags, numbers, _ = split(optimizer.scalars(1.0, group), dict.fromkeys(GRADIENT))
    kinds = ((p.device, p.dtype),) * len(columns)
    text, _ = source(Signature(optimizer.rule, False, flags, numbers, columns, kinds))
    body = text[text.index("INLINE void update") :]
    return f"```c++\n{body[: body.index('#define')].strip()}\n```"


FACTS: dict[str, Callable[..., str]] = {
    "atlas": atlas,
    "checkpoint": checkpoint,
    "cost": cost,
    "findings": findings,
    "gradient_release": gradient_release,
    "kernel": kernel,
    "mnist": mnist_table,
    "reproductions": reproductions_table,
    "seeds": seeds,
    "speed": speed,
    "study": study_table,
}
