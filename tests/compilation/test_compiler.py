"""The compiler of kernels for a CPU: missing, broken, chosen by CXX, interrupted."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch

from torch_scratch_optim import ScratchAdam

from ..cases import PAIRS, Case, assert_equal_state, give_gradients, leaves, parameters, train
from .common import (
    REAL_COMPILER,
    WORDS,
    Compiler,
    assert_same,
    everything,
    fail_and_go_on,
    give_short_gradients,
    in_process,
    on_x86,
    steps_right,
    twins_of_sgd,
)

pytestmark = pytest.mark.slow


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


TO_OUTPUT = 'while [ "$1" != -o ]; do shift; done\n'

SOMETHING_ELSE = f'echo "int x;" | "{REAL_COMPILER}" -x c++ -shared -fPIC - -o'
BROKEN = {
    "fails": ("exit 1", WORDS),
    "is killed": ("kill -9 $$", WORDS),
    "writes nothing": ("exit 0", WORDS),
    "writes an empty file": (f'{TO_OUTPUT}: > "$2"; exit 0', "the compiler failed"),
    "writes garbage": (f'{TO_OUTPUT}echo garbage > "$2"; exit 0', "the compiler failed"),
    "writes another library": (f'{TO_OUTPUT}{SOMETHING_ELSE} "$2"; exit 0', "the compiler failed"),
}


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
