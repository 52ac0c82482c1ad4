"""What an experiment leaves behind: pictures, facts.json and TensorBoard events, all or nothing."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from torch.utils.tensorboard.writer import SummaryWriter

from benchmarks.record import write_atomically, write_json

FACTS_FILE = "facts.json"


def keep(directory: Path, content: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write beside the directory and rename: it is there with everything in it, or not at all."""
    arriving = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        for name, picture in pictures.items():
            write_atomically(arriving / f"{name}.png", picture)
        write_json(arriving / FACTS_FILE, content)
        _write_events(arriving, content["facts"], pictures)
        arriving.rename(directory)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _write_events(directory: Path, facts: Any, pictures: Mapping[str, bytes]) -> None:
    writer = SummaryWriter(log_dir=str(directory))
    for tag, value, step in scalars(facts):
        if math.isfinite(value):  # a curve has a gap there
            writer.add_scalar(tag, value, step)
    for name, picture in pictures.items():
        writer.add_image(name, imread(io.BytesIO(picture)), dataformats="HWC")
    writer.close()


def scalars(facts: Any, tag: str = "") -> Iterator[tuple[str, float, int]]:
    """Every number among the facts: its name, its value, and its place in a list or at a step."""
    if isinstance(facts, Mapping):
        steps = facts.get("step")
        for name, value in facts.items():
            below = f"{tag}/{name}" if tag else str(name)
            if isinstance(steps, list) and isinstance(value, list) and name != "step":
                for step, one in zip(steps, value, strict=True):
                    yield below, one, step
            else:
                yield from scalars(value, below)
    elif isinstance(facts, (list, tuple)):
        if all(isinstance(one, (int, float)) for one in facts):
            yield from ((tag, float(one), place) for place, one in enumerate(facts))
        else:
            for place, one in enumerate(facts):
                yield from scalars(one, f"{tag}/{place}")
    elif isinstance(facts, (int, float)) and not isinstance(facts, bool):
        yield tag, float(facts), 0
