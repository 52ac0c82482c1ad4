"""Kernels are loaded in threads, forks and new processes, in silence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD

from ..cases import assert_close_state, assert_equal_state, leaves, parameters, train
from .common import (
    PATIENCE,
    REAL_COMPILER,
    SALTS,
    Compiler,
    assert_same,
    at_once,
    exit_code_of_a_fork,
    give_short_gradients,
    in_new_process,
    in_process,
    in_python,
    kind_of_its_own,
    needs_linux,
    short_numbers,
    steps_right,
    twins_of_sgd,
)

pytestmark = pytest.mark.slow


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
        signal.alarm(PATIENCE)  # a hang must not last for ever
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
