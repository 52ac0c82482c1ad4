"""Kernels for a CPU: how they are compiled, kept on disk, loaded and called.

What depends on an empty memory runs in processes of its own. Most of them are forks of one server,
which has imported torch; where threads or the import matter, they start from nothing.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD

from .cases import (
    PAIRS,
    Case,
    assert_close_state,
    assert_equal_state,
    give_gradients,
    leaves,
    parameters,
    train,
)

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).parents[1]
REAL_COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")
DIGEST = hashlib.sha256().digest_size
PATIENCE = 100  # seconds; then what a test waits for hangs

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="forks, signals and shell scripts"),
    pytest.mark.skipif(not REAL_COMPILER, reason="there is no C++ compiler"),
]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="libraries live in a file there")


# As ccache does: what was compiled in another test is a copy. The output is named last.
REMEMBERING = """
for word; do
    case $word in *.cpp) source=$word;; esac
    output=$word
done
known="{store}/$(cksum < "$source" | tr ' ' -)"
if [ -e "$known" ]; then
    cp "$known" "$output"
else
    "{real}" "$@" || exit $?
    cp "$output" "$known-$$" && mv "$known-$$" "$known"
fi
echo "$*" >> "{log}"
"""


class Compiler:
    """A shell script in the place of the compiler, which keeps a log of its successes."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.path, self._log, self._store = folder / "compiler", folder / "calls", store

    @property
    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def does(self, script: str = ":") -> None:
        """Do something before the real compiler runs, or in its place."""
        real = REMEMBERING.format(real=REAL_COMPILER, store=self._store, log=self._log)
        self.path.write_text(f"#!/bin/sh\n{script}\n{real}")
        self.path.chmod(0o755)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(tmp_path, store)
    made.does()
    monkeypatch.setenv("CXX", str(made.path))
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(folder))
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def in_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function in a process that has imported torch and stepped nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", __name__])
    return _in_process(context, function, *args, **kwargs)


def in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same in a process that has no ancestor, and so may have threads."""
    return _in_process(multiprocessing.get_context("spawn"), function, *args, **kwargs)


def _in_process(context: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_report, args=(sender, dict(os.environ), function, args, kwargs)
    )
    process.start()
    sender.close()
    result: T
    try:
        assert receiver.poll(PATIENCE), "the process hangs"
        problem, result = receiver.recv()
    except EOFError:
        process.join(PATIENCE)
        raise AssertionError(f"the process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    assert not problem, problem
    return result


def _report(
    sender: Connection, environment: dict[str, str], function: Any, args: Any, kwargs: Any
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # as the environment has it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sender.send(("", function(*args, **kwargs)))
    except BaseException:
        sender.send((traceback.format_exc(), None))


def in_python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def exit_code_of_a_fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(10)  # so that a child which hangs is killed
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def short_numbers(dtype: torch.dtype = torch.float32, *, salt: int = 0) -> list[Tensor]:
    """Numbers of so few digits that no operation rounds, so that only one result is right."""
    made = [
        (torch.arange(70, dtype=dtype) + salt) / 8 - 3,
        (torch.arange(33, dtype=dtype) / 4 + 10 + salt).view(3, 11),
    ]
    return [p.requires_grad_() for p in made]


def give_short_gradients(*twins: Optimizer, step: int = 0) -> None:
    for same in zip(*map(leaves, twins), strict=True):
        for p in same:
            values = torch.arange(p.numel(), dtype=p.dtype) % 13 - 6 + step
            p.grad = values.view_as(p) / 2


def twins_of_sgd(
    dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[ScratchSGD, torch.optim.SGD]:
    """A fused optimizer, and torch's, which is to have the same numbers."""
    both = {"lr": 0.5, "weight_decay": 0.25} | options
    return (
        ScratchSGD(short_numbers(dtype), fused=True, **both),
        torch.optim.SGD(short_numbers(dtype), foreach=False, **both),
    )


def steps_right(dtype: torch.dtype = torch.float32, steps: int = 2, **options: Any) -> None:
    """Take fused steps, and be right. All of them need the same one kernel."""
    ours, theirs = twins_of_sgd(dtype, **options)
    before = [p.detach().clone() for p in leaves(ours)]
    for step in range(steps):
        give_short_gradients(ours, theirs, step=step)
        ours.step()
        theirs.step()
        assert_equal_state(ours, theirs, f"step {step}")
    assert not any(map(torch.equal, leaves(ours), before))


SALTS = count(3)


def kind_of_its_own() -> Callable[..., ScratchOptimizer]:
    """An optimizer whose kernel nobody has compiled in this process."""
    factor = float(next(SALTS))

    class Own(ScratchOptimizer):
        counts_steps = False

        def __init__(self, params: list[Tensor], lr: float, fused: bool = True) -> None:
            super().__init__(params, {"lr": lr, "fused": fused})

        def columns(self, group: dict[str, Any]) -> dict[str, str]:
            return {}

        def scalars(self, t: float, group: dict[str, Any]) -> dict[str, Any]:
            return {"lr": group["lr"]}

        @staticmethod
        def rule(p: Any, g: Any, *, lr: float, first: bool) -> None:
            p.add_(g.mul(factor), alpha=-lr)

    return Own


def everything(optimizer: Optimizer) -> list[Any]:
    """All that a step changes, to be compared later."""
    params = leaves(optimizer)
    versions = [p._version for p in params]
    return copy.deepcopy([[p.detach() for p in params], versions, optimizer.state_dict()])


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# ------------------------------------------------------------------------------- no compiler


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the first step tells")
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CXX", "no-such-compiler", "CXX=no-such-compiler is not to be found"),
        ("CXX", "no-such-compiler -O2", "CXX=no-such-compiler -O2 is not to be found"),
        ("PATH", "", "none was found"),
    ],
)
def test_constructor_refuses_fused_where_there_is_no_compiler(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setenv(variable, value)
    for case in map(Case, PAIRS):
        params = parameters()
        with pytest.raises(RuntimeError, match=words) as caught:
            case.ours(params, lr=0.1, fused=True)
        assert "environment variable CXX" in str(caught.value)
        assert "apt install g++" in str(caught.value)
        assert_same(params, parameters())
        default = case.ours(params[:3], lr=0.1)
        with pytest.raises(RuntimeError, match=words):
            default.add_param_group({"params": params[3:], "fused": True})
        assert len(default.param_groups) == 1


def load_torchs_fused_checkpoint() -> None:
    theirs = torch.optim.Adam(parameters(), lr=0.01, fused=True)
    for _ in train(theirs, steps=range(3)):
        pass
    checkpoint = theirs.state_dict()
    ours = ScratchAdam([p.detach().clone().requires_grad_() for p in leaves(theirs)])
    ours.load_state_dict(copy.deepcopy(checkpoint))
    assert ours.param_groups[0]["fused"] is True
    give_gradients(leaves(ours), step=3)
    before = everything(ours)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="environment variable CXX"):
            ours.step()
        assert_same(everything(ours), before)
    loop = torch.optim.Adam([p.detach().clone().requires_grad_() for p in leaves(theirs)])
    loop.load_state_dict(copy.deepcopy(checkpoint))
    for optimizer in (ours, loop):
        optimizer.param_groups[0] |= {"fused": False, "foreach": False}
    for step in train(ours, loop, steps=range(3, 6)):
        assert_equal_state(ours, loop, f"step {step}")


def test_load_state_dict_takes_a_fused_checkpoint_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    in_process(load_torchs_fused_checkpoint)


# --------------------------------------------------------------------- a compiler that breaks

TO_OUTPUT = 'while [ "$1" != -o ]; do shift; done\n'
WORDS = "the compiler is out of order"  # or those of whoever tries to load what it wrote
SOMETHING_ELSE = f'echo "int x;" | "{REAL_COMPILER}" -x c++ -shared -fPIC - -o'
BROKEN = {
    "fails": ("exit 1", WORDS),
    "is killed": ("kill -9 $$", WORDS),
    "writes nothing": ("exit 0", WORDS),
    "writes an empty file": (f'{TO_OUTPUT}: > "$2"; exit 0', "the compiler failed"),
    "writes garbage": (f'{TO_OUTPUT}echo garbage > "$2"; exit 0', "the compiler failed"),
    "writes another library": (f'{TO_OUTPUT}{SOMETHING_ELSE} "$2"; exit 0', "the compiler failed"),
}


def fail_and_go_on(later: bool, words: str, good: str) -> None:
    """A step that fails, and what follows with a good compiler."""

    def made(fused: bool) -> ScratchAdam:
        params = parameters()
        # The first group moves by the loop, but not before the second is ready.
        groups: list[dict[str, Any]] = [
            {"params": params[:4], "fused": False},
            {"params": params[4:]},
        ]
        return ScratchAdam(groups, lr=0.01, fused=fused)

    ours, fresh, loop = made(True), made(True), made(False)
    start = 3 if later else 0
    if later:
        for optimizer in (ours, fresh, loop):
            optimizer.param_groups[1]["fused"] = False
            for _ in train(optimizer, steps=range(start)):
                pass
        for optimizer in (ours, fresh):
            optimizer.param_groups[1]["fused"] = True
    give_gradients(leaves(ours), step=9)
    before = everything(ours)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=words) as caught:
            ours.step()
        assert os.environ["CXX"] in str(caught.value)
        assert_same(everything(ours), before)
        assert len(ours.state) == (len(leaves(ours)) if later else 0)
    os.environ["CXX"] = good
    for step in train(ours, fresh, loop, steps=range(start, start + 3)):
        assert_equal_state(ours, fresh, f"step {step}")
    assert_close_state(ours, loop)  # but for torch's square roots, which are not always rounded


@pytest.mark.parametrize("later", [False, True], ids=["first step", "later"])
@pytest.mark.parametrize(("script", "words"), BROKEN.values(), ids=BROKEN)
def test_step_with_a_compiler_that_breaks_changes_nothing(
    script: str, words: str, later: bool, compiler: Compiler, cache: Path
) -> None:
    compiler.does(f"echo '{WORDS}' >&2\n{script}")
    in_process(fail_and_go_on, later, words, REAL_COMPILER)
    assert len(list(cache.iterdir())) == 1  # what the good one made


def test_step_with_a_compiler_that_is_no_program_changes_nothing(compiler: Compiler) -> None:
    compiler.path.write_text("not a script")
    in_process(fail_and_go_on, False, "fused=True", REAL_COMPILER)


on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86")


def refuse_without_fma() -> None:
    ours, _ = twins_of_sgd()
    give_short_gradients(ours)
    before = everything(ours)
    with pytest.raises(RuntimeError, match="no fused multiply-add"):
        ours.step()
    assert_same(everything(ours), before)


@on_x86
def test_step_without_fused_multiply_add_is_refused(compiler: Compiler, cache: Path) -> None:
    compiler.does(f'"{REAL_COMPILER}" "$@" -mno-fma -mno-avx512f; exit $?')
    in_process(refuse_without_fma)
    assert not cache.exists()


# --------------------------------------------------------------------------- which compiler


@on_x86
def test_step_uses_other_flags_where_the_compiler_does_not_know_the_first(
    compiler: Compiler, cache: Path
) -> None:
    compiler.does('case "$*" in *=native*) echo what? >&2; exit 1;; esac')
    in_process(steps_right)
    (call,) = compiler.calls
    assert "-mfma" in call
    assert len(list(cache.iterdir())) == 1


def test_step_uses_the_arguments_and_quotes_of_cxx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    spaced = tmp_path / "a folder"
    spaced.mkdir()
    (spaced / "compiler").symlink_to(compiler.path)
    monkeypatch.setenv("CXX", f"'{spaced}/compiler' -O2 '-DTWO WORDS'")
    in_process(steps_right)
    (call,) = compiler.calls
    assert "-O2" in call
    assert "-DTWO WORDS" in call


def test_step_with_other_arguments_of_cxx_compiles_again(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, cache: Path
) -> None:
    for flags in ("", " -O2", " -O1", " -O2"):
        monkeypatch.setenv("CXX", f"{compiler.path}{flags}")
        in_process(steps_right)
    assert len(compiler.calls) == len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_step_with_each_compiler_is_right(
    name: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("CXX", name)
    in_process(steps_right)
    assert len(list(cache.iterdir())) == 1


# ------------------------------------------------------------------------------- the cache


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


# ----------------------------------------------------------------------- folders of no use


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


# ----------------------------------------------------------------------------- damaged files


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


# ----------------------------------------------------------------------- whose file it is

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


# ------------------------------------------------------------------------------- loading


def steps_right_without(name: str) -> None:
    delattr(os, name)
    steps_right()
    steps_right(torch.float64)


@needs_linux
def test_step_without_libraries_in_memory_loads_from_a_temporary_folder(
    compiler: Compiler, temporary: Path
) -> None:
    in_process(steps_right_without, "memfd_create")
    assert len(compiler.calls) == 2
    assert not list(temporary.iterdir())
    in_process(steps_right_without, "memfd_create")
    assert len(compiler.calls) == 2
    assert not list(temporary.iterdir())


def step_after_descriptors_were_closed() -> None:
    steps_right()

    def go_on() -> None:
        os.closerange(3, 256)  # as a process does that goes into the background
        steps_right()
        steps_right(maximize=True)
        steps_right(torch.float64)

    assert exit_code_of_a_fork(go_on) == 0


def test_step_after_descriptors_were_closed_has_the_right_kernel() -> None:
    in_process(step_after_descriptors_were_closed)


@needs_linux
def test_kernels_have_one_thread_where_there_is_no_openmp(cache: Path) -> None:
    optimizer = kind_of_its_own()([torch.ones(5, requires_grad=True)], 0.5)
    give_short_gradients(optimizer)
    optimizer.step()
    (file,) = cache.iterdir()
    factor = next(SALTS) - 1
    code = f"""
import ctypes, os
from array import array
assert not hasattr(ctypes.CDLL(None), "GOMP_parallel")
library = ctypes.CDLL({str(file)!r}, mode=os.RTLD_NOW)
n = 100_003
p, g = array("f", range(n)), array("f", [i % 13 for i in range(n)])
sizes, numbers = array("q", [n]), array("d", [0.5])
pointers = array("q", [p.buffer_info()[0], g.buffer_info()[0]])
tables = [ctypes.c_void_p(table.buffer_info()[0]) for table in (sizes, pointers, numbers)]
refused = library.run(ctypes.c_int64(1), *tables, ctypes.c_int64(0), None, ctypes.c_int(8))
assert refused == 0
assert p.tolist() == [i - {factor} * (i % 13) / 2 for i in range(n)]
"""
    done = in_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ----------------------------------------------------------------------- threads, processes


def at_once(number: int, work: Callable[[int], T]) -> list[T]:
    """Results of threads that start together."""
    barrier = threading.Barrier(number)

    def wait_and_work(i: int) -> T:
        barrier.wait(PATIENCE)
        return work(i)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_work, range(number)))


def first_steps_in_threads() -> None:
    """Everything that torch does lazily it does in a thread, too."""

    def work(seed: int) -> ScratchAdam:
        optimizer = ScratchAdam(parameters(seed=seed), lr=0.01, fused=True)
        for _ in train(optimizer, steps=range(3)):
            pass
        return optimizer

    for seed, optimizer in enumerate(at_once(3, work)):
        assert_equal_state(optimizer, work(seed), f"thread {seed}")


def test_three_threads_may_take_a_process_first_steps(compiler: Compiler, cache: Path) -> None:
    in_new_process(first_steps_in_threads)
    assert len(compiler.calls) == len(list(cache.iterdir())) == 1


def run_of(kind: Callable[..., ScratchOptimizer], seed: int, steps: int) -> list[Tensor]:
    """Parameters of a run, among them one that is shared out to threads."""
    random = torch.Generator().manual_seed(seed)
    sizes = (3, 1000, 100_000)
    optimizer = kind(
        [torch.randn(n, generator=random, requires_grad=True) for n in sizes],
        lr=0.01 * (seed + 1),
    )
    for _ in range(steps):
        for p in leaves(optimizer):
            p.grad = torch.randn(p.shape, generator=random)
        optimizer.step()
    return leaves(optimizer)


@pytest.mark.parametrize(("number", "steps"), [(3, 2), (8, 2), (2, 100)])
def test_threads_that_step_at_once_do_not_disturb_each_other(
    number: int, steps: int, compiler: Compiler, cache: Path
) -> None:
    kind = kind_of_its_own()
    results = at_once(number, lambda seed: run_of(kind, seed, steps))
    assert len(compiler.calls) == len(list(cache.iterdir())) == 1
    for seed, result in enumerate(results):
        assert_same(result, run_of(kind, seed, steps))
    alone = {tuple(result[0].tolist()) for result in results}
    assert len(alone) == number  # each had numbers of its own


def test_four_processes_with_a_cold_cache_compile_at_once(compiler: Compiler, cache: Path) -> None:
    # Each waits until all four have come to compile.
    compiler.does(f"""
        echo >> "{compiler.path}-waiting"
        while [ $(wc -l < "{compiler.path}-waiting") -lt 4 ]; do sleep 0.01; done
    """)
    at_once(4, lambda _: in_process(steps_right))
    assert len(compiler.calls) == 4
    assert len(list(cache.iterdir())) == 1  # no temporary file
    assert cache.stat().st_mode & 0o777 == 0o700
    in_process(steps_right)
    assert len(compiler.calls) == 4


def fork_after_a_step() -> None:
    """A step on threads, which do not survive the fork."""
    torch.set_num_threads(2)

    def made(**options: Any) -> ScratchSGD:
        p = (torch.arange(300_000) % 997 / 8).requires_grad_()
        return ScratchSGD([p], lr=0.5, weight_decay=0.25, **options)

    ours, loop = made(fused=True), made(foreach=False)
    expected = []
    for step in range(3):
        give_short_gradients(ours, loop, step=step)
        loop.step()
        expected.append(leaves(loop)[0].detach().clone())
    give_short_gradients(ours, step=0)
    ours.step()
    assert torch.equal(leaves(ours)[0], expected[0])
    give_short_gradients(ours, step=1)

    def go_on() -> None:
        signal.alarm(10)
        ours.step()
        torch.set_num_threads(1)  # torch's own operations would hang
        assert torch.equal(leaves(ours)[0], expected[1])
        steps_right(torch.float64)  # another kernel

    assert exit_code_of_a_fork(go_on) == 0
    process = multiprocessing.get_context("fork").Process(target=go_on)
    process.start()
    process.join()
    assert process.exitcode == 0
    for step in (1, 2):
        give_short_gradients(ours, step=step)
        ours.step()
        assert torch.equal(leaves(ours)[0], expected[step])


def test_forked_children_step_and_so_does_their_parent() -> None:
    in_new_process(fork_after_a_step)


def fork_while_a_thread_compiles(folder: Path, good: str) -> None:
    thread = threading.Thread(target=steps_right)
    thread.start()
    while not (folder / "started").exists():
        time.sleep(0.01)

    def go_on() -> None:
        os.environ["CXX"] = good
        steps_right(torch.float64)

    code = exit_code_of_a_fork(go_on)
    (folder / "go").touch()
    thread.join()
    assert code == 0


def test_a_child_forked_while_a_thread_compiles_steps(tmp_path: Path, compiler: Compiler) -> None:
    compiler.does(
        f'touch "{tmp_path}/started"; while [ ! -e "{tmp_path}/go" ]; do sleep 0.01; done'
    )
    in_process(fork_while_a_thread_compiles, tmp_path, REAL_COMPILER)


# ----------------------------------------------------------------------------- interruptions


def interrupt_and_go_on(good: str) -> None:
    ours, fresh = (ScratchAdam(parameters(), lr=0.01, fused=True) for _ in range(2))
    give_gradients(leaves(ours), step=0)
    before = everything(ours)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ours.step()
        assert_same(everything(ours), before)
        assert not ours.state
    os.environ["CXX"] = good
    for step in train(ours, fresh, steps=range(2)):
        assert_equal_state(ours, fresh, f"step {step}")


@pytest.mark.parametrize("when", ["before", "after"])
def test_step_that_is_interrupted_changes_nothing(
    when: str, compiler: Compiler, cache: Path, temporary: Path
) -> None:
    interrupt = "kill -INT $PPID; exec sleep 20"
    written = f'"{REAL_COMPILER}" "$@"; {interrupt}'
    compiler.does(interrupt if when == "before" else written)
    in_process(interrupt_and_go_on, REAL_COMPILER)
    assert not list(temporary.iterdir())
    assert len(list(cache.iterdir())) == 1


def test_step_leaves_no_temporary_files(temporary: Path, compiler: Compiler) -> None:
    in_process(steps_right)
    compiler.does("exit 1")
    in_process(fail_and_go_on, False, "the compiler failed", REAL_COMPILER)
    assert not list(temporary.iterdir())


# ------------------------------------------------------------------------------- silence


def test_import_and_first_step_are_silent_and_change_nothing_else(compiler: Compiler) -> None:
    code = """
import locale, os, random, signal, sys, threading, warnings
import torch

known = set(sys.modules)
import torch_scratch_optim
brought = {module.split(".")[0] for module in set(sys.modules) - known}
heavy = {"cuda", "triton", "sympy", "setuptools", "pynvml", "numpy", "pkg_resources"}
assert not brought & heavy, brought & heavy
for package in ("torch._dynamo", "torch._inductor", "cuda.bindings"):
    assert (package in sys.modules) == (package in known), package

import torch._dynamo  # as torch's own optimizers do

p = torch.arange(100_000.0, requires_grad=True)
p.grad = p.detach() % 7

def everything():
    return (
        torch.get_rng_state().tolist(), random.getstate(), list(warnings.filters),
        dict(os.environ), os.getcwd(), locale.setlocale(locale.LC_ALL), os.umask(0o22),
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
        torch.get_default_device(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.full((1,), 1e-40).mul(1).item(), torch.autograd.is_multithreading_enabled(),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM)],
        sys.flags, sys.getswitchinterval(), sys.getrecursionlimit(), list(sys.path),
        sys.excepthook, threading.active_count(), p.grad.tolist(), p.grad._version,
    )

before = everything()
optimizer = torch_scratch_optim.ScratchAdam([p], fused=True)
optimizer.step()
after = everything()
for i, (a, b) in enumerate(zip(before, after, strict=True)):
    assert a == b, (i, a, b)
assert optimizer.state[p]["step"] == 1
"""
    done = in_python(code, "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(compiler.calls) == 1


# --------------------------------------------------------------------------- surroundings


def test_first_import_under_fake_tensors_and_without_dynamo_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    code = f"""
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    import torch_scratch_optim
from {__name__} import steps_right, step_and_count
steps_right()
step_and_count()
"""
    done = in_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(compiler.calls) == 2


def step_and_count() -> None:
    """By engines that count in Python, and by the fused one."""
    engines: list[dict[str, Any]] = [{"fused": True}, {"foreach": True}, {"foreach": False}]
    for options in engines:
        optimizer = ScratchAdam(parameters(), lr=0.01, **options)
        for _ in train(optimizer, steps=range(2)):
            pass
        assert {state["step"].item() for state in optimizer.state.values()} == {2.0}


class Onlooker(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def steps_right_under_a_mode() -> None:
    with Onlooker():
        ours, theirs = twins_of_sgd()
        for step in range(2):
            give_short_gradients(ours, theirs, step=step)
            ours.step()
            theirs.step()
    assert_equal_state(ours, theirs)
    fused, loop = (ScratchAdam(parameters(), lr=0.01, fused=fused) for fused in (True, False))
    with Onlooker():
        for _ in train(fused, loop, steps=range(2)):
            pass
    assert_close_state(fused, loop)  # but for torch's square roots


def test_first_step_under_a_function_mode_is_right(compiler: Compiler) -> None:
    in_process(steps_right_under_a_mode)
    assert len(compiler.calls) == 2


def step_from_hooks() -> None:
    """Each parameter has an optimizer, which moves it as soon as it has a gradient."""
    ours, theirs = short_numbers(), short_numbers()
    moved = []
    for kind, params in ((ScratchSGD, ours), (torch.optim.SGD, theirs)):
        engine = {"fused": True} if kind is ScratchSGD else {"foreach": False}
        for p in params:
            optimizer = kind([p], lr=0.5, **engine)

            def move(p: Tensor, optimizer: Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()
                moved.append(p)

            p.register_post_accumulate_grad_hook(move)
    for params in (ours, theirs):
        for step in range(2):
            losses = [(p * (i + step + 1)).sum() for i, p in enumerate(params)]
            torch.stack(losses).sum().backward()
    assert_same(ours, theirs)
    assert len(moved) == 8
    assert not torch.equal(ours[0], short_numbers()[0])


def test_first_step_from_a_gradients_hook_is_right(compiler: Compiler) -> None:
    in_process(step_from_hooks)
    assert len(compiler.calls) == 1


# --------------------------------------------------------------------------- half precision


class Storing(ScratchOptimizer):
    """Stores a gradient in half precision."""

    counts_steps = False

    def __init__(self, params: list[Tensor], dtype: torch.dtype, fused: bool = True) -> None:
        self.dtype = dtype
        super().__init__(params, {"fused": fused})

    def columns(self, group: dict[str, Any]) -> dict[str, str]:
        return {"h": "half"}

    def scalars(self, t: float, group: dict[str, Any]) -> dict[str, Any]:
        return {}

    def new_state(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"half": torch.zeros_like(p, dtype=self.dtype)}

    @staticmethod
    def rule(p: Any, g: Any, h: Any, *, first: bool) -> None:
        h.copy_(g)


class Loading(Storing):
    """Makes parameters of it again."""

    @staticmethod
    def rule(p: Any, g: Any, h: Any, *, first: bool) -> None:
        p.copy_(h)


@pytest.fixture(params=[False, True], ids=["denormal numbers", "flushed"])
def flush_denormal(request: pytest.FixtureRequest) -> Iterator[None]:
    if not torch.set_flush_denormal(request.param):
        pytest.skip("the CPU cannot flush denormal numbers")
    yield
    torch.set_flush_denormal(False)


halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def assert_same_numbers(ours: Tensor, theirs: Tensor) -> None:
    """The same bits, but for those that tell one NaN from another."""
    integers = {2: torch.int16, 4: torch.int32}[ours.itemsize]
    mask = ours.view(integers) != theirs.view(integers)
    # Integers again: a comparison of numbers might itself flush them.
    differing = ours[mask].isnan() & theirs[mask].isnan()
    assert ours.dtype == theirs.dtype
    assert differing.all(), (ours[mask][~differing][:5], theirs[mask][~differing][:5])


def pieces(values: Tensor) -> list[Tensor]:
    """All of it, and parts too short for vector instructions."""
    return [values, *values[: 7 * 50].view(50, 7).unbind(), *values[-5:].split(1)]


@halves
@pytest.mark.usefixtures("flush_denormal")
def test_kernels_load_every_number_of_half_precision(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    assert bits.unique().numel() == 2**16
    held = [h.clone() for h in pieces(bits.roll(100).view(dtype))]
    params = [torch.full(h.shape, 7.0, requires_grad=True) for h in held]
    optimizer = Loading(params, dtype)
    for p, h in zip(params, held, strict=True):
        p.grad = torch.ones_like(p)
        optimizer.state[p] = {"half": h}
    optimizer.step()
    for p, h in zip(params, held, strict=True):
        assert_same_numbers(p.detach(), h.float())


def float_patterns() -> Tensor:
    """Every sign and exponent with every 7 bits after it, and ends near all ties."""
    high = torch.arange(2**16).unsqueeze(1) * 2**16
    low = torch.arange(16).unsqueeze(1) * 2**12 + torch.tensor([-1, 0, 1])
    patterns = (high + low.clamp(0, 2**16 - 1).unique()).flatten() - 2**31
    values: Tensor = patterns.to(torch.int32).view(torch.float32)
    return values


@halves
@pytest.mark.usefixtures("flush_denormal")
def test_kernels_store_numbers_in_half_precision_as_torch_does(dtype: torch.dtype) -> None:
    values = float_patterns()
    assert values.numel() > 3_000_000
    grads = pieces(values.roll(10_000_000 % values.numel()))
    params = [torch.zeros_like(g, requires_grad=True) for g in grads]
    optimizer = Storing(params, dtype)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    for p, g in zip(params, grads, strict=True):
        assert_same_numbers(optimizer.state[p]["half"], g.to(dtype))
