"""Kernels on disk: found again, in folders of any kind, damaged or planted."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from .common import DIGEST, REAL_COMPILER, Compiler, in_process, in_python, needs_linux, steps_right

pytestmark = pytest.mark.slow


def test_cache_saves_the_second_process_the_compiler(compiler: Compiler, cache: Path) -> None:
    in_process(steps_right)
    assert len(compiler.calls) == 1
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    in_process(steps_right)
    assert len(compiler.calls) == 1
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == before


KERNELS: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({"lr": 0.25}, 1),  # a number may vary
    ({"maximize": True}, 2),
    ({"weight_decay": 0.0}, 3),
    ({"dtype": torch.float64}, 4),
    ({"momentum": 0.5, "steps": 1}, 5),  # the first step's, which starts a velocity
    ({"momentum": 0.5}, 6),
    ({"momentum": 0.25, "weight_decay": 0.125}, 6),
]


def steps_right_of_all(calls: Path) -> list[int]:
    counts = []
    for options, _ in KERNELS:
        steps_right(**options)
        counts.append(len(calls.read_text().splitlines()))
    return counts


def test_cache_has_a_file_for_each_rule_dtype_and_flag(
    tmp_path: Path, compiler: Compiler, cache: Path
) -> None:
    expected = [number for _, number in KERNELS]
    assert in_process(steps_right_of_all, tmp_path / "calls") == expected
    assert len(list(cache.iterdir())) == expected[-1]
    assert in_process(steps_right_of_all, tmp_path / "calls") == [expected[-1]] * len(KERNELS)


def steps_right_with_umask(mask: int) -> None:
    os.umask(mask)
    steps_right()


def test_cache_is_private_and_made_with_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(folder))
    in_process(steps_right_with_umask, 0)
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def at_home_or_homeless(homeless: bool) -> None:
    if homeless:
        import pwd

        pwd.getpwuid = _nobody
    steps_right()


def _nobody(uid: int) -> NoReturn:
    raise KeyError(uid)


def test_cache_is_in_the_home_by_default_or_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    monkeypatch.delenv("TORCH_SCRATCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    in_process(at_home_or_homeless, False)
    files = [f for f in (tmp_path / "home").rglob("*") if f.is_file()]
    assert len(files) == len(compiler.calls) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    in_process(at_home_or_homeless, False)
    assert len(list((tmp_path / "xdg" / "torch_scratch_optim").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")  # as in a container, under a number that has no name
    in_process(at_home_or_homeless, True)
    assert len(compiler.calls) == 3


@pytest.mark.parametrize(
    "folder", ["/dev/null/below", "/proc/torch_scratch", "file/below", "file", "x" * 300, "."]
)
def test_cache_that_cannot_be_made_does_not_matter(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    (tmp_path / "file").write_text("keep me")
    (tmp_path / ".").chmod(0o777)  # the last of the folders
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(tmp_path / folder))
    before = sorted(tmp_path.iterdir())
    for number in (1, 2):
        in_process(steps_right)
        assert len(compiler.calls) == number
    assert sorted(tmp_path.iterdir()) == sorted({*before, tmp_path / "calls"})
    assert (tmp_path / "file").read_text() == "keep me"


def steps_right_although(names: list[str], number: int) -> None:
    """Functions of the system fail."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    modules = {"os": os, "tempfile": tempfile}
    for name in names:
        module, function = name.split(".")
        setattr(modules[module], function, fail)
    steps_right()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=os.strerror)
@pytest.mark.parametrize("function", ["os.replace", "tempfile.mkstemp"])
def test_cache_that_cannot_be_written_does_not_matter(
    function: str, number: int, cache: Path, compiler: Compiler
) -> None:
    for calls in (1, 2):
        in_process(steps_right_although, [function], number)
        assert len(compiler.calls) == calls
        assert not list(cache.iterdir())  # no temporary file either


def mounted(folder: Path, options: str) -> Iterator[Path]:
    command = shutil.which("mount")
    if not command or sys.platform != "linux":
        pytest.skip("mount is not to be found")
    folder.mkdir(mode=0o700)
    mount = [command, "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["size=8k", "ro", "nr_inodes=1"], ids=["full", "read-only", "no inodes"])
def disk_of_no_use(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", request.param)


def test_cache_on_a_disk_that_takes_nothing_does_not_matter(
    disk_of_no_use: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(disk_of_no_use))
    for calls in (1, 2):
        in_process(steps_right)
        assert len(compiler.calls) == calls
        assert not list(disk_of_no_use.iterdir())


@pytest.fixture
def disk_without_programs(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "noexec")


def test_cache_on_a_disk_that_runs_no_programs_serves(
    disk_without_programs: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(disk_without_programs))
    for _ in range(2):
        in_process(steps_right)
    assert len(compiler.calls) == 1
    (file,) = disk_without_programs.iterdir()
    done = in_python(f"import ctypes; ctypes.CDLL({str(file)!r})")
    assert "failed to map" in done.stderr  # from there it cannot be loaded
    monkeypatch.setenv("TMPDIR", str(disk_without_programs))
    in_process(steps_right, torch.float64)
    assert len(list(disk_without_programs.iterdir())) == 2


def truncated(to: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(to * len(content)) if isinstance(to, float) else to]


def flipped(at: int) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[at] ^= 0x10
        return bytes(changed)

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": truncated(0),
    "1 byte": truncated(1),
    "shorter than the digest": truncated(DIGEST - 1),
    "as long as the digest": truncated(DIGEST),
    "a page": truncated(4096),
    "half": truncated(0.5),
    "without the digest": truncated(-DIGEST),
    "without its last byte": truncated(-1),
    "a byte too many": lambda content: content + b"\0",
    "twice": lambda content: content * 2,
    "a bit flipped at the start": flipped(0),
    "a bit flipped in the middle": flipped(9000),
    "a bit flipped in the digest": flipped(-1),
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: hashlib.shake_256(content).digest(len(content)),
    "digest first": lambda content: content[-DIGEST:] + content[:-DIGEST],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_cache_with_a_damaged_file_compiles_again(
    damage: Callable[[bytes], bytes], compiler: Compiler, cache: Path
) -> None:
    in_process(steps_right)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    assert damage(whole) != whole
    file.write_bytes(damage(whole))
    in_process(steps_right)
    assert len(compiler.calls) == 2
    in_process(steps_right)  # and keeps what it compiled
    assert len(compiler.calls) == 2
    assert list(cache.iterdir()) == [file]


def test_cache_with_a_folder_in_place_of_a_file_compiles_again(
    compiler: Compiler, cache: Path
) -> None:
    in_process(steps_right)
    (file,) = cache.iterdir()
    file.unlink()
    file.mkdir()
    in_process(steps_right)
    assert len(compiler.calls) == 2
    assert list(cache.iterdir()) == [file]


def step_while_files_shrink(cache: Path) -> None:
    steps_right()
    (file,) = cache.iterdir()
    os.truncate(file, 0)
    steps_right()  # with the kernel that is loaded
    file.write_bytes(b"\xcc" * 20_000)
    steps_right()
    file.unlink()
    steps_right()


@needs_linux
def test_step_does_not_depend_on_a_file_after_it_was_loaded(
    cache: Path, compiler: Compiler
) -> None:
    in_process(step_while_files_shrink, cache)
    in_process(steps_right)
    in_process(step_while_files_shrink, cache)  # loaded from disk this time
    assert len(compiler.calls) == 2


PLANTED = """
#include <cstdio>
__attribute__((constructor)) static void leave_a_trace() {{ fclose(fopen("{trace}", "w")); }}
extern "C" int run() {{ return 1; }}
extern "C" double peek() {{ return 0.0 / 0.0; }}
extern "C" int has_fma() {{ return 1; }}
"""


@pytest.fixture
def trace(tmp_path: Path, cache: Path) -> Path:
    """What a library leaves if it is loaded, which has been planted in the cache."""
    in_process(steps_right)
    (file,) = cache.iterdir()
    trace, source, library = (tmp_path / name for name in ("trace", "planted.cpp", "planted"))
    source.write_text(PLANTED.format(trace=trace))
    subprocess.run([REAL_COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    binary = library.read_bytes()
    file.write_bytes(binary + hashlib.sha256(binary).digest())
    return trace


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o700])
def test_cache_uses_what_nobody_else_could_have_written(
    mode: int, trace: Path, cache: Path, compiler: Compiler
) -> None:
    (file,) = cache.iterdir()
    file.chmod(mode)
    in_process(steps_right)
    assert trace.exists()  # so that the tests below would notice
    assert len(compiler.calls) == 1


def owned_by_somebody(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give a file away")
    os.chown(path, 54321, -1)


def with_mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


STRANGE: dict[str, Callable[[Path], None]] = {
    "writable by all": with_mode(0o777),
    "writable by others": with_mode(0o702),
    "writable by the group": with_mode(0o720),
    "sticky": with_mode(0o1777),
    "not the user's": owned_by_somebody,
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_cache_never_loads_a_file_that_others_could_write(
    change: Callable[[Path], None], trace: Path, cache: Path, compiler: Compiler
) -> None:
    (file,) = cache.iterdir()
    change(file)
    for _ in range(2):
        in_process(steps_right)
        assert not trace.exists()
        assert len(compiler.calls) == 2  # the folder is private, so the file was replaced
    assert list(cache.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_cache_never_loads_from_a_folder_that_others_could_write(
    change: Callable[[Path], None], trace: Path, cache: Path, compiler: Compiler
) -> None:
    (file,) = cache.iterdir()
    planted = file.read_bytes()
    change(cache)
    for calls in (2, 3):
        in_process(steps_right)
        assert not trace.exists()
        assert len(compiler.calls) == calls
    assert list(cache.iterdir()) == [file]
    assert file.read_bytes() == planted
