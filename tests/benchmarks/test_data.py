"""Where the digits come from, and what is said when they cannot be had."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch

from benchmarks.common import data
from benchmarks.common.data import MNIST_NAME, SYNTHETIC_NAME, DataError, Digits, load_digits

IMAGES = {"train": 20, "t10k": 10}


def small_mnist() -> dict[str, bytes]:
    """Files in MNIST's format with few images: image number i is grey level i everywhere."""
    files = {}
    for split, count in IMAGES.items():
        size = count.to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        pixels = b"".join(bytes([i]) * 784 for i in range(count))
        labels = bytes(i % 10 for i in range(count))
        files[f"{split}-images-idx3-ubyte"] = b"\x00\x00\x08\x03" + size + 2 * side + pixels
        files[f"{split}-labels-idx1-ubyte"] = b"\x00\x00\x08\x01" + size + labels
    return files


@pytest.fixture(autouse=True)
def checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_mnist().items()}
    monkeypatch.setattr(data, "FILES", sums)
    monkeypatch.setattr(data, "DOWNLOAD_PATIENCE", 0.5)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in small_mnist().items():
        (folder / name).write_bytes(content)
    return folder


def load(kind: str, data_dir: Path) -> Digits:
    return load_digits(kind, data_dir, torch.device("cpu"), 20, 10, announce=lambda text: None)


@pytest.mark.parametrize("kind", ["auto", "mnist"])
def test_verified_files_are_read_and_normalised(kind: str, raw: Path, tmp_path: Path) -> None:
    raw.chmod(0o555)  # the folder may be read-only
    digits = load(kind, tmp_path)
    raw.chmod(0o755)
    assert digits.name == MNIST_NAME
    assert digits.train_images.shape == (20, 784)
    assert digits.test_labels.tolist() == list(range(10))
    expected = (torch.arange(20) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(digits.train_images[:, 5], expected)


@pytest.mark.parametrize("kind", ["auto", "mnist"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_truncated_file_is_named(kind: str, name: str, raw: Path, tmp_path: Path) -> None:
    (raw / name).write_bytes((raw / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name} .*corrupt or truncated"):
        load(kind, tmp_path)


def test_a_changed_byte_is_noticed(raw: Path, tmp_path: Path) -> None:
    content = bytearray((raw / "t10k-images-idx3-ubyte").read_bytes())
    content[-1] ^= 1
    (raw / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load("auto", tmp_path)


@pytest.mark.parametrize("kind", ["auto", "mnist"])
def test_a_missing_file_among_others_is_named(kind: str, raw: Path, tmp_path: Path) -> None:
    (raw / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is missing"):
        load(kind, tmp_path)


def test_more_images_than_mnist_has_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"60,001 images .* MNIST has 60,000"):
        load_digits("mnist", tmp_path, torch.device("cpu"), 60_001, 10)


def test_compressed_originals_need_no_network(raw: Path, tmp_path: Path) -> None:
    for name in small_mnist():
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    assert load("mnist", tmp_path).name == MNIST_NAME


FIRST = "train-images-idx3-ubyte"


def compress(raw: Path) -> Path:
    for name in small_mnist():
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    return raw / f"{FIRST}.gz"


def truncated(raw: Path) -> None:
    archive = compress(raw)
    archive.write_bytes(archive.read_bytes()[:-9])


def with_a_flipped_bit(raw: Path) -> None:
    archive = compress(raw)
    content = bytearray(archive.read_bytes())
    content[20] ^= 0x10  # zlib finds it, before any checksum is compared
    archive.write_bytes(content)


def that_is_no_archive(raw: Path) -> None:
    compress(raw).write_bytes(b"none")


def that_grows(raw: Path) -> None:
    with gzip.open(compress(raw), "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(bytes(10**6))


def of_other_content(raw: Path) -> None:
    compress(raw).write_bytes(gzip.compress(b"something else"))


def of_three_gigabytes(raw: Path) -> None:
    with (raw / FIRST).open("r+b") as file:
        file.truncate(3 * 2**30)


def archive_of_three_gigabytes(raw: Path) -> None:
    with compress(raw).open("r+b") as file:
        file.truncate(3 * 2**30)


def that_is_a_pipe(raw: Path) -> None:
    (raw / FIRST).unlink()
    os.mkfifo(raw / FIRST)


def that_is_a_directory(raw: Path) -> None:
    (raw / FIRST).unlink()
    (raw / FIRST).mkdir()


def that_is_a_link_to_nothing(raw: Path) -> None:
    (raw / FIRST).unlink()
    (raw / FIRST).symlink_to("nothing")


def in_a_loop_of_links(raw: Path) -> None:
    shutil.rmtree(raw)
    raw.symlink_to("raw")


@pytest.mark.parametrize("kind", ["auto", "mnist"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (truncated, "corrupt or truncated .*end-of-stream"),
        (with_a_flipped_bit, "corrupt or truncated .*decompressing"),
        (that_is_no_archive, "corrupt or truncated .*gzipped"),
        (that_grows, "corrupt or truncated: the MD5"),
        (of_other_content, "corrupt or truncated: the MD5"),
        (of_three_gigabytes, "3,221,225,472 bytes. is not MNIST's"),
        (archive_of_three_gigabytes, "3,221,225,472 bytes. is not MNIST's"),
        (that_is_a_pipe, "is not MNIST's"),
        (that_is_a_directory, "is not MNIST's"),
        (that_is_a_link_to_nothing, "No such file"),
        (in_a_loop_of_links, "Too many levels of symbolic links"),
    ],
)
def test_what_is_not_mnists_is_told_in_a_line_and_costs_little_memory(
    spoil: Callable[[Path], None], complaint: str, named: bool, kind: str, raw: Path, tmp_path: Path
) -> None:
    spoil(raw)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=complaint):
            load_digits(kind, tmp_path, torch.device("cpu"), 20, 10, named=named)
        assert tracemalloc.get_traced_memory()[1] < 4 * data.MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inside", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("archives", [False, True])
def test_a_directory_may_be_named_at_any_depth(
    inside: str, archives: bool, raw: Path, tmp_path: Path
) -> None:
    if archives:
        compress(raw)
    found = load_digits("auto", tmp_path / inside, torch.device("cpu"), 20, 10, named=True)
    assert found.name == MNIST_NAME


@pytest.mark.parametrize("kind", ["auto", "mnist"])
@pytest.mark.parametrize("name", ["new", "empty"])
def test_a_directory_that_was_named_is_neither_filled_nor_replaced(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torchvision(monkeypatch, fake_download(small_mnist()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"no MNIST in .*{name}: .*{name}/MNIST/raw/{FIRST}"):
        load_digits(kind, tmp_path / name, torch.device("cpu"), 20, 10, named=True)
    drawn = load_digits("synthetic", tmp_path / name, torch.device("cpu"), 20, 10, named=True)
    assert drawn.name == SYNTHETIC_NAME
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_environment_names_a_directory_and_an_option_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(data.DATA_DIR_VARIABLE, raising=False)
    assert data.find_data_dir(None) == (Path("data"), False)
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, "theirs")
    assert data.find_data_dir(None) == (Path("theirs"), True)
    assert data.find_data_dir(Path("mine")) == (Path("mine"), True)


def test_without_network_auto_draws_and_leaves_the_folder_alone(tmp_path: Path) -> None:
    said: list[str] = []
    cpu = torch.device("cpu")
    digits = load_digits("auto", tmp_path / "new", cpu, 20, 10, announce=said.append)
    assert digits.name == SYNTHETIC_NAME
    assert "not MNIST" in said[-1]
    assert not (tmp_path / "new").exists()


def test_without_network_insisting_on_mnist_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put its four files into .*or choose --dataset synthetic"):
        load("mnist", tmp_path)


def test_a_host_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    fake_torchvision(monkeypatch, lambda *arguments, **options: answer.wait(30))
    began = time.monotonic()
    digits = load("auto", tmp_path)
    took = time.monotonic() - began
    answer.set()
    assert digits.name == SYNTHETIC_NAME
    assert took < 5


def test_the_patience_with_a_silent_network_is_below_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert data.DOWNLOAD_PATIENCE <= 12


def test_a_download_is_verified_and_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torchvision(monkeypatch, fake_download(small_mnist()))
    assert load("auto", tmp_path / "new").name == MNIST_NAME
    kept = sorted(path.name for path in (tmp_path / "new/MNIST/raw").iterdir())
    assert kept == sorted(small_mnist())
    assert [path.name for path in (tmp_path / "new/MNIST").iterdir()] == ["raw"]


def test_a_download_with_a_wrong_byte_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: content + b"!" for name, content in small_mnist().items()}
    fake_torchvision(monkeypatch, fake_download(files))
    with pytest.raises(DataError, match="corrupt or truncated"):
        load("auto", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("problem", [ImportError, RuntimeError])
def test_without_torchvision_auto_draws_and_says_why(
    problem: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @property
        def datasets(self) -> None:
            raise problem("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", cast(Any, Broken()))
    said: list[str] = []
    cpu = torch.device("cpu")
    digits = load_digits("auto", tmp_path / "new", cpu, 20, 10, announce=said.append)
    assert digits.name == SYNTHETIC_NAME
    assert "torchvision cannot be imported" in said[-1]
    with pytest.raises(DataError, match=r"no MNIST: torchvision cannot .*; put its four files"):
        load("mnist", tmp_path)


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, mnist: Callable[..., object]) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", Mock(datasets=Mock(MNIST=mnist)))


def fake_download(files: dict[str, bytes]) -> type:
    class Fake:
        def __init__(self, root: str, download: bool) -> None:
            for name, content in files.items():
                (Path(root) / "MNIST" / "raw" / name).write_bytes(content)

    return Fake
