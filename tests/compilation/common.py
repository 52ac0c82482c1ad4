"""What the tests of compilation share: processes, a compiler that is a script, known results."""

from __future__ import annotations

import copy
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
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD

from ..cases import (
    assert_close_state,
    assert_equal_state,
    give_gradients,
    leaves,
    parameters,
    train,
)

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).parents[2]
REAL_COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "")
DIGEST = hashlib.sha256().digest_size
PATIENCE = 100  # seconds; then what a test waits for hangs

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


def in_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function in a process that has imported torch and stepped nothing."""
    context = multiprocessing.get_context("forkserver")
    tests = [f"{__package__}.{file.stem}" for file in Path(__file__).parent.glob("test_*.py")]
    context.set_forkserver_preload(["torch._dynamo", *tests])
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
            signal.alarm(PATIENCE)  # so that a child which hangs is killed
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


WORDS = "the compiler is out of order"  # or those of whoever tries to load what it wrote


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


on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86")


def at_once(number: int, work: Callable[[int], T]) -> list[T]:
    """Results of threads that start together."""
    barrier = threading.Barrier(number)

    def wait_and_work(i: int) -> T:
        barrier.wait(PATIENCE)
        return work(i)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_work, range(number)))
