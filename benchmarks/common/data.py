"""The digits to train on: MNIST, or synthetic digits where MNIST cannot be had.

The whole set lives as tensors on the device, so that a batch is one indexing operation and no
time is lost to loading workers.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.synthetic import synthetic_digits

KINDS = ("auto", "mnist", "synthetic")
MNIST_NAME = "MNIST"
SYNTHETIC_NAME = "synthetic digits (not MNIST)"
DATA_DIR_VARIABLE = "TORCH_SCRATCH_DATA"
TRAIN_SIZE, TEST_SIZE = 60_000, 10_000
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, once they are scaled to 0 … 1
DOWNLOAD_PATIENCE = 10.0  # seconds without a single new byte before a download is given up

FILES = {  # MD5 of the decompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
HEADERS = {"images": 16, "labels": 8}  # bytes before the first pixel or label
MOST_BYTES = HEADERS["images"] + TRAIN_SIZE * 28 * 28  # of the largest file, decompressed
LAYOUTS = ("MNIST/raw", "raw", ".")  # where a directory has the files: as torchvision, or nearer

Announce = Callable[[str], None]
OnGenerated = Callable[[int, int], None]  # images made so far, images wanted
Arrays = tuple[Tensor, Tensor, Tensor, Tensor]  # training images, labels; test images, labels


# A directory that the user named is left as it is.
_ANEW = "put a good copy there, or remove all four: without --data-dir they are downloaded again"


class DataError(Exception):
    """The data cannot be used; the text says why and what to do about it."""


@dataclass(frozen=True)
class Digits:
    """Training and test digits on one device: images N x 784 float32, labels N int64."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def find_data_dir(given: Path | None) -> tuple[Path, bool]:
    """The directory of the data, and whether the user named it: by an option or the environment."""
    named = given or os.environ.get(DATA_DIR_VARIABLE)
    return Path(named or "data"), bool(named)


def load_digits(
    kind: str,
    data_dir: Path,
    device: torch.device,
    train_size: int = TRAIN_SIZE,
    test_size: int = TEST_SIZE,
    *,
    named: bool = False,
    announce: Announce = print,
    on_generated: OnGenerated | None = None,
) -> Digits:
    """Load digits of a kind: "mnist", "synthetic", or "auto" (MNIST if possible, else synthetic).

    Args:
        named: the user named `data_dir`. What is not there is then neither downloaded nor replaced
            by synthetic digits, unless those are asked for.

    Raises:
        DataError: the data cannot be had, or are not MNIST's.
    """
    name, arrays = MNIST_NAME, None
    if kind != "synthetic":
        arrays = _mnist(kind, data_dir, train_size, test_size, named, announce)
    if arrays is None:
        name, arrays = SYNTHETIC_NAME, _draw(train_size, test_size, on_generated)
    images, labels, test_images, test_labels = arrays
    return Digits(
        name=name,
        train_images=_as_floats(images, device),
        train_labels=labels.to(device),
        test_images=_as_floats(test_images, device),
        test_labels=test_labels.to(device),
    )


def _as_floats(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).flatten(1).float().div_(255).sub_(MEAN).div_(DEVIATION)


def _draw(train_size: int, test_size: int, on_generated: OnGenerated | None) -> Arrays:
    def report(already: int) -> Callable[[int], None] | None:
        if on_generated is None:
            return None
        return lambda done: on_generated(already + done, train_size + test_size)

    train = synthetic_digits(train_size, 0, "train", report(0))
    test = synthetic_digits(test_size, 0, "test", report(train_size))
    return *train, *test


def _mnist(
    kind: str, data_dir: Path, train_size: int, test_size: int, named: bool, announce: Announce
) -> Arrays | None:
    """MNIST, downloaded if it may be; None if it cannot be had and the kind is "auto"."""
    folder = _find(data_dir)
    if folder is None and named:
        wanted = data_dir / LAYOUTS[0] / next(iter(FILES))
        raise DataError(
            f"no MNIST in {data_dir}: there is no {wanted}, with or without .gz, nor any other of "
            "its files there or right in that directory; name the directory that has MNIST/raw, or "
            f"none (no --data-dir, no {DATA_DIR_VARIABLE}) to have it downloaded, or choose "
            "--dataset synthetic"
        )
    if folder is None:
        folder = data_dir / LAYOUTS[0]
        try:
            _download(folder, announce)
        except _CannotDownload as problem:
            if kind == "mnist":
                raise DataError(
                    f"no MNIST: {problem}; put its four files into {folder}, or choose --dataset "
                    "synthetic"
                ) from problem
            announce(f"No MNIST: {problem}. Going on with {SYNTHETIC_NAME}.")
            return None
    sizes = (train_size, test_size)
    for size, available in zip(sizes, (TRAIN_SIZE, TEST_SIZE), strict=True):
        if size > available:
            raise DataError(
                f"{size:,} images were asked for, of which MNIST has {available:,}; "
                "only the synthetic digits (--dataset synthetic) come in any number"
            )
    images, labels, test_images, test_labels = (_read(folder, name) for name in FILES)
    return (
        images.view(-1, 28, 28)[:train_size],
        labels[:train_size].long(),
        test_images.view(-1, 28, 28)[:test_size],
        test_labels[:test_size].long(),
    )


def _find(data_dir: Path) -> Path | None:
    """The folder with MNIST's four files; None if none of them is anywhere."""
    with _reading(data_dir):
        if data_dir.exists() and not data_dir.is_dir():
            raise DataError(f"{data_dir} is not a directory")
        for folder in (data_dir / layout for layout in LAYOUTS):
            missing = [name for name in FILES if _path_of(folder, name) is None]
            if not missing:
                return folder
            if len(missing) < len(FILES):
                raise DataError(
                    f"{folder / missing[0]} is missing, though others of MNIST's four files are "
                    f"there; {_ANEW}"
                )
    return None


def _path_of(folder: Path, name: str) -> Path | None:
    """Of a file or its archive, whatever lies there; an error if that cannot be told."""
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return path
    return None


def _read(folder: Path, name: str) -> Tensor:
    """What follows a file's header, if its MD5 is right; a file that is too big is not read."""
    with _reading(folder / name):
        path = _path_of(folder, name) or folder / name
        size = path.stat().st_size
        if not path.is_file() or size > MOST_BYTES:
            raise DataError(f"{path} ({size:,} bytes) is not MNIST's {name}; replace it")
        opener: Any = gzip.open if path.suffix == ".gz" else open
        try:
            with opener(path, "rb") as file:
                content = bytearray(file.read(MOST_BYTES + 1))
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise DataError(f"{path} is corrupt or truncated ({problem}); {_ANEW}") from problem
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != FILES[name]:
        raise DataError(
            f"{path} ({size:,} bytes) is corrupt or truncated: the MD5 of its content is {found} "
            f"and should be {FILES[name]}; {_ANEW}"
        )
    header = next(size for part, size in HEADERS.items() if part in name)
    return torch.frombuffer(content, dtype=torch.uint8, offset=header)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as problem:  # ValueError: a name that cannot be one
        why = getattr(problem, "strerror", None) or problem
        raise DataError(f"cannot read {path}: {why}") from problem


class _CannotDownload(Exception):
    pass


def _download(folder: Path, announce: Announce) -> None:
    """Download through torchvision, then put the files in place all at once.

    torchvision's download has no timeout, neither for a connection nor for the look-up of a
    host's name. So it works in a thread and in a temporary directory, and is abandoned as soon
    as nothing arrives any more.
    """
    try:  # it takes a second, so not for everyone
        from torchvision import datasets  # type: ignore[import-untyped]  # it has no type hints
    except (ImportError, RuntimeError) as problem:  # the latter beside another torch
        raise _CannotDownload(f"torchvision cannot be imported ({problem})") from problem

    announce(f"MNIST is not in {folder}; trying to download it")
    problems: list[Exception] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        arriving = Path(temporary) / "MNIST" / "raw"
        arriving.mkdir(parents=True)

        def work() -> None:
            try:
                datasets.MNIST(temporary, download=True)
            except (OSError, RuntimeError, HTTPException, EOFError, zlib.error) as problem:
                problems.append(problem)

        thread = threading.Thread(target=work, daemon=True, name="MNIST download")
        thread.start()
        _wait_while_growing(thread, arriving)
        if problems:
            lines = str(problems[0]).splitlines()  # one for each mirror, the last one's at the end
            reason = lines[-1] if lines else type(problems[0]).__name__
            raise _CannotDownload(f"the download failed ({reason})") from problems[0]
        for name in FILES:
            _read(arriving, name)
        _put_in_place(arriving, folder)


def _wait_while_growing(thread: threading.Thread, arriving: Path) -> None:
    size, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(0.2)
        now = sum(path.stat().st_size for path in arriving.iterdir())
        if now != size:
            size, since = now, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > DOWNLOAD_PATIENCE:
            raise _CannotDownload(f"nothing arrived for {DOWNLOAD_PATIENCE:.0f} seconds")


def _put_in_place(arriving: Path, folder: Path) -> None:
    """Copy beside the destination, then rename: other programs see all the files or none."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".arriving-") as beside:
            for name in FILES:
                shutil.copyfile(arriving / name, Path(beside) / name)
            folder.mkdir(exist_ok=True)
            for name in FILES:
                os.replace(Path(beside) / name, folder / name)
    except OSError as problem:
        raise DataError(
            f"MNIST was downloaded but cannot be kept in {folder}: {problem.strerror}; "
            "make room there, or work in another directory"
        ) from problem
