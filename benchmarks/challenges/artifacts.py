"""The files of an experiment: figures, facts.json and TensorBoard events, all of them or none."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.challenges.experiment import Curve, Results
from benchmarks.common import claims
from benchmarks.common.record import write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTS_FILE = "facts.json"


def draw(experiment: str, results: Results) -> dict[str, bytes]:
    """The figures of an experiment, as PNG files."""
    from benchmarks.common.plots import png  # matplotlib takes long to import

    figures: Mapping[str, Figure] = import_module(
        f"benchmarks.challenges.figures.{experiment}"
    ).draw(results)
    return {name: png(figure) for name, figure in figures.items()}


def write_artifacts(
    directory: Path,
    content: Mapping[str, Any],
    figures: Mapping[str, bytes],
    curves: Iterable[Curve] = (),
) -> None:
    """Fill a temporary directory and rename it, so that `directory` is complete or absent."""
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    claims.clear(temporary)  # of a process that was killed and had this number
    try:
        for name, figure in figures.items():
            write_atomically(temporary / f"{name}.png", figure)
        write_json(temporary / FACTS_FILE, content)
        _write_events(temporary, figures, curves)
        claims.check(directory)
        temporary.rename(directory)
    finally:
        with suppress(OSError):  # so that an earlier exception is the one reported
            claims.clear(temporary)


def _write_events(directory: Path, figures: Mapping[str, bytes], curves: Iterable[Curve]) -> None:
    from matplotlib.image import imread
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(log_dir=str(directory))
    try:
        for name, figure in figures.items():
            writer.add_image(name, imread(io.BytesIO(figure)), dataformats="HWC")
        for curve in curves:
            for step, value in zip(curve.steps, curve.values, strict=True):
                writer.add_scalar(curve.tag, value, step)
    finally:
        writer.close()
