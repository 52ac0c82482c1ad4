"""What an experiment leaves behind: pictures, facts.json and TensorBoard events, all or nothing."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from torch.utils.tensorboard.writer import SummaryWriter

from benchmarks.common import claims
from benchmarks.common.record import write_atomically, write_json

FACTS_FILE = "facts.json"


def keep(directory: Path, content: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write beside the directory and rename: it is there with everything in it, or not at all."""
    arriving = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    claims.clear(arriving)  # of a process that was killed and had this number
    try:
        for name, picture in pictures.items():
            write_atomically(arriving / f"{name}.png", picture)
        write_json(arriving / FACTS_FILE, content)
        _write_events(arriving, content["facts"], pictures)
        claims.check(directory)
        arriving.rename(directory)
    finally:
        with suppress(OSError):  # what went wrong before is what is told
            claims.clear(arriving)


def _write_events(directory: Path, facts: Any, pictures: Mapping[str, bytes]) -> None:
    writer = SummaryWriter(log_dir=str(directory))
    try:
        for tag, value, step in scalars(facts):
            writer.add_scalar(tag, value, step)
        for name, picture in pictures.items():
            writer.add_image(name, imread(io.BytesIO(picture)), dataformats="HWC")
    finally:
        writer.close()


def scalars(facts: Any, tag: str = "") -> Iterator[tuple[str, float, int]]:
    """Every number among the facts: its name, its value, and its place in a list or at a step."""
    if isinstance(facts, Mapping):
        steps = facts.get("step")
        for name, value in facts.items():
            below = f"{tag}/{name}" if tag else str(name)
            if isinstance(steps, list) and isinstance(value, list) and name != "step":
                yield from _curve(below, steps, value)
            else:
                yield from scalars(value, below)
    elif isinstance(facts, (list, tuple)):
        if all(one is None or isinstance(one, (int, float)) for one in facts):
            yield from _curve(tag, range(len(facts)), facts)
        else:
            for place, one in enumerate(facts):
                yield from scalars(one, f"{tag}/{place}")
    elif isinstance(facts, (int, float)) and not isinstance(facts, bool):
        yield from _curve(tag, [0], [facts])


def _curve(
    tag: str, steps: Iterable[int], values: Iterable[float | None]
) -> Iterator[tuple[str, float, int]]:
    """Where a value is not finite a curve has a gap."""
    for step, value in zip(steps, values, strict=True):
        if value is not None and math.isfinite(value):
            yield tag, float(value), step
