"""The digits to train on: MNIST, or the drawn stand-in where MNIST cannot be had.

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
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

# torchvision comes without type hints.
from torchvision.datasets import MNIST  # type: ignore[import-untyped]
from torchvision.datasets.mnist import (  # type: ignore[import-untyped]
    read_image_file,
    read_label_file,
)

from benchmarks.drawn import drawn_digits

KINDS = ("auto", "mnist", "drawn")
MNIST_NAME = "MNIST"
DRAWN_NAME = "drawn digits (stand-in, not MNIST)"
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

Announce = Callable[[str], None]
OnDrawn = Callable[[int, int], None]  # images drawn so far, images wanted
Arrays = tuple[Tensor, Tensor, Tensor, Tensor]  # training images, labels; test images, labels


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


def default_data_dir() -> Path:
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


def load_digits(
    kind: str,
    data_dir: Path,
    device: torch.device,
    train_size: int = TRAIN_SIZE,
    test_size: int = TEST_SIZE,
    announce: Announce = print,
    on_drawn: OnDrawn | None = None,
) -> Digits:
    """Load digits of a kind: "mnist", "drawn", or "auto" (MNIST if it can be had, else drawn)."""
    folder = None if kind == "drawn" else _mnist_folder(kind, data_dir, announce)
    if folder is None:
        name, arrays = DRAWN_NAME, _draw(train_size, test_size, on_drawn)
    else:
        name, arrays = MNIST_NAME, _read_mnist(folder, train_size, test_size)
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


def _mnist_folder(kind: str, data_dir: Path, announce: Announce) -> Path | None:
    """The folder with the verified files; None if there are none and the kind is "auto"."""
    try:
        return _find_or_download(data_dir, announce)
    except _CannotDownload as problem:
        if kind == "mnist":
            raise DataError(
                f"no MNIST: {problem}; put its four files into {data_dir / 'MNIST' / 'raw'}, "
                "or choose --dataset drawn"
            ) from problem
        announce(f"No MNIST: {problem}. Going on with {DRAWN_NAME}.")
        return None


def _draw(train_size: int, test_size: int, on_drawn: OnDrawn | None) -> Arrays:
    def report(already: int) -> Callable[[int], None] | None:
        if on_drawn is None:
            return None
        return lambda done: on_drawn(already + done, train_size + test_size)

    train = drawn_digits(train_size, 0, "train", report(0))
    test = drawn_digits(test_size, 0, "test", report(train_size))
    return *train, *test


def _read_mnist(folder: Path, train_size: int, test_size: int) -> Arrays:
    for wanted, available in ((train_size, TRAIN_SIZE), (test_size, TEST_SIZE)):
        if wanted > available:
            raise DataError(
                f"{wanted:,} images were asked for, of which MNIST has {available:,}; "
                "only the drawn digits (--dataset drawn) come in any number"
            )
    # torchvision's MNIST class would prefer unverified files of an older layout, if there are
    # any; so the verified files are handed to its readers directly.
    train_images, train_labels, test_images, test_labels = (
        reader(str(folder / name))
        for name, reader in zip(FILES, (read_image_file, read_label_file) * 2, strict=True)
    )
    return (
        train_images[:train_size],
        train_labels[:train_size],
        test_images[:test_size],
        test_labels[:test_size],
    )


def _find_or_download(data_dir: Path, announce: Announce) -> Path:
    """The folder with MNIST's four verified files."""
    folder = data_dir / "MNIST" / "raw"
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a directory")
    present = [name for name in FILES if (folder / name).exists()]
    if not present:
        _download(folder, announce)
    elif missing := [name for name in FILES if name not in present]:
        raise DataError(
            f"{folder / missing[0]} is missing, though others of MNIST's four files are there; "
            f"put it there, or remove {folder} to have all of them downloaded again"
        )
    _verify(folder)
    return folder


def _verify(folder: Path) -> None:
    for name, expected in FILES.items():
        path = folder / name
        try:
            with path.open("rb") as file:
                found = _md5(file.read())
                size = file.tell()
        except OSError as problem:
            raise DataError(f"cannot read {path}: {problem.strerror}") from problem
        if found != expected:
            raise DataError(
                f"{path} ({size:,} bytes) is corrupt or truncated: its MD5 is {found} and should "
                f"be {expected}; replace it, or remove {folder} to have it downloaded again"
            )


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class _CannotDownload(Exception):
    pass


def _download(folder: Path, announce: Announce) -> None:
    """Download through torchvision, then put the files in place all at once.

    torchvision's download has no timeout, neither for a connection nor for the look-up of a
    host's name. So it works in a thread and in a temporary directory, and is abandoned as soon
    as nothing arrives any more.
    """
    announce(f"MNIST is not in {folder}; trying to download it")
    problems: list[Exception] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        arriving = Path(temporary) / "MNIST" / "raw"
        arriving.mkdir(parents=True)
        _offer_archives(folder, arriving)

        def work() -> None:
            try:
                MNIST(temporary, download=True)
            except (OSError, RuntimeError, HTTPException, EOFError) as problem:
                problems.append(problem)

        thread = threading.Thread(target=work, daemon=True, name="MNIST download")
        thread.start()
        _wait_while_growing(thread, arriving)
        if problems:
            lines = str(problems[0]).splitlines()  # one for each mirror, the last one's at the end
            reason = lines[-1] if lines else type(problems[0]).__name__
            raise _CannotDownload(f"the download failed ({reason})") from problems[0]
        _verify(arriving)
        _put_in_place(arriving, folder)


def _offer_archives(folder: Path, arriving: Path) -> None:
    """Compressed originals that lie there already need not be downloaded."""
    for name in FILES:
        archive = folder / f"{name}.gz"
        if archive.exists():
            try:
                content = gzip.decompress(archive.read_bytes())
            except (OSError, EOFError) as problem:
                raise DataError(f"{archive} is corrupt or truncated: {problem}") from problem
            if _md5(content) != FILES[name]:
                raise DataError(f"{archive} does not hold MNIST's {name}; remove or replace it")
            (arriving / name).write_bytes(content)


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
            f"choose another --data-dir or set {DATA_DIR_VARIABLE}"
        ) from problem
