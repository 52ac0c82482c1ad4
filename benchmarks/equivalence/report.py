"""Tables and picture of the atlas of equivalence, made from what was recorded."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from benchmarks.common.markdown import table as markdown
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import (
    Shape,
    among,
    many,
    mapping,
    number,
    perhaps,
    shaped,
    text,
    whole,
)
from benchmarks.equivalence.atlas import DTYPES, FAILED, PROMISED, UNAVAILABLE, Comparison
from torch_scratch_optim.equivalence import FAR

Recorded = dict[str, Any]

NONE = "-"
EXPLANATION = (
    "The largest distance from torch's loop (foreach=False) in ulps, over all options and steps: "
    "0 is the same bits in every parameter and state. far: NaN against a number, or 2⁶³ and more. "
    "Small differences of numbers near zero are many ulps. -: there is no such implementation. "
    "Three variants show what a real difference is: eps-inside has ε inside the root, averaging "
    "v ← μv + (1 − μ) g, lr-in-velocity v ← μv + γ g."
)
ROW: Shape = {
    "optimizer": among(OPTIMIZERS),
    "options": text,
    "dtype": among(DTYPES),
    "compared": whole(),
    **dict.fromkeys(("max_ulps", "mismatches"), mapping(text, whole())),
    "max_difference": mapping(text, perhaps(number)),
    **dict.fromkeys(("first", UNAVAILABLE, FAILED), mapping(text, text)),
}
RECORDED: Shape = {"rows": many(shaped(ROW))}
NARROW = {
    "default": "de-\nfault",
    "foreach": "for-\neach",
    "averaging": "aver-\naging",
    "inside": "in-\nside",
    "velocity": "velo-\ncity",
}


def summary(rows: list[Comparison]) -> str:
    """Which implementations had the reference's bits in all of these rows, and which not."""
    found = [(name, _worst(rows, name)) for name in _names(rows)]
    equal = [name for name, ulps in found if ulps == 0]
    others = [f"{name} {_number(ulps)}" for name, ulps in found if ulps]
    failed = sorted({f"{name} {FAILED}" for row in rows for name in row[FAILED]})
    return f"0 ulp: {', '.join(equal) or 'none'}; " + ", ".join(others + failed)


def verdict(recorded: Recorded) -> str:
    rows, steps = recorded["rows"], recorded["settings"]["steps"]
    parts = []
    for name in PROMISED:
        mine = [row for row in rows if name in row["max_ulps"]]
        if mine:
            wrong = sum(row["mismatches"].get(name, 0) for row in mine)
            tensors = sum(row["compared"] for row in mine)
            scope = f"cases: {len(mine)}, tensors: {tensors:,}"
            parts.append(f"{name}: {wrong:,} mismatches ({scope})")
    parts += [
        f"{row['optimizer']}, {row['options']}, {row['dtype']}, {name} {FAILED}: {problem}"
        for row in rows
        for name, problem in row[FAILED].items()
    ]
    return "\n".join(parts) + f"\n{steps} steps each."


def _names(rows: list[Comparison]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["max_ulps"]))


def _worst(rows: list[Comparison], name: str) -> int | None:
    return max((row["max_ulps"][name] for row in rows if name in row["max_ulps"]), default=None)


def _number(ulps: int | None) -> str:
    if ulps is None:
        return NONE
    if ulps == FAR:
        return "far"
    return str(ulps) if ulps < 10_000 else f"{ulps:.0e}".replace("e+", "e")


def _narrow(name: str) -> str:
    """A heading for a terminal of 80 columns."""
    return "\n".join(NARROW.get(word, word) for word in name.split("-"))


def _cells(recorded: Recorded) -> list[list[str]]:
    """A line for each optimizer and dtype: the worst of its options."""
    settings = recorded["settings"]
    lines = []
    for optimizer in settings["optimizers"]:
        for dtype in settings["dtypes"]:
            rows = _rows(recorded, optimizer, dtype)
            if rows:
                numbers = [_number(_worst(rows, name)) for name in settings["implementations"]]
                lines.append([OPTIMIZERS[optimizer].title, dtype, *numbers])
    return lines


def _rows(recorded: Recorded, optimizer: str, dtype: str) -> list[Comparison]:
    return [
        row for row in recorded["rows"] if row["optimizer"] == optimizer and row["dtype"] == dtype
    ]


def terminal_table(recorded: Recorded) -> Table:
    table = Table(title="ulps from torch's loop", box=box.SIMPLE_HEAD, padding=0)
    for heading in ("optimizer", "dtype"):
        table.add_column(heading, no_wrap=True)
    for name in recorded["settings"]["implementations"]:
        table.add_column(_narrow(name), justify="right", no_wrap=True)
    for line in _cells(recorded):
        table.add_row(*line)
    return table


def worst_table(recorded: Recorded) -> str:
    names = recorded["settings"]["implementations"]
    return markdown([["optimizer", "dtype", *names], *_cells(recorded)])


def report(recorded: Recorded) -> str:
    """equivalence.md: the worst of each optimizer and dtype, then every first mismatch."""
    settings, machine = recorded["settings"], recorded["machine"]
    parts = [
        "# Equal, or not",
        f"{machine['processor']}, torch {recorded['versions']['torch']}, {settings['steps']} "
        f"steps, seed {settings['seed']}.",
        worst_table(recorded),
        EXPLANATION,
        verdict(recorded),
        "![Largest difference of parameters](equivalence.png)",
        "## First mismatches",
        markdown(
            [
                ["optimizer", "options", "dtype", "implementation", "first mismatch", "tensors"],
                *(
                    [
                        OPTIMIZERS[row["optimizer"]].title,
                        row["options"],
                        row["dtype"],
                        name,
                        first,
                        f"{row['mismatches'][name]:,}",
                    ]
                    for row in recorded["rows"]
                    for name, first in row["first"].items()
                ),
            ],
            texts=5,
        ),
    ]
    return "\n\n".join(parts) + "\n"
