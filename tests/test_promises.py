"""Promises beyond numbers: raw operations, nothing of the user's touched, small."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_scratch_optim
from torch_scratch_optim import engines

from .cases import (
    PAIRS,
    Case,
    each_case,
    each_richest,
    give_gradients,
    leaves,
    loop_and_foreach,
    parameters,
    train,
)

PACKAGE = Path(torch_scratch_optim.__file__).parent


@loop_and_foreach
@each_case
def test_no_built_in_optimizer_is_called(
    case: Case, foreach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a built-in optimizer was called")

    ours = case.ours(parameters(), foreach=foreach)
    for file in ("sgd", "adagrad", "rmsprop", "adam", "adamw"):
        module = importlib.import_module(f"torch.optim.{file}")
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                monkeypatch.setattr(module, name, forbidden)
    for theirs in {theirs for _, theirs, _ in PAIRS.values()}:
        monkeypatch.setattr(theirs, "step", forbidden)
    for name in dir(torch):
        if name.startswith("_fused_"):
            monkeypatch.setattr(torch, name, forbidden)
    with OnlyRawOperations():
        for _ in train(ours, steps=range(3)):
            pass


class OnlyRawOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "fused" not in str(func), f"{func} is a fused kernel"
        return func(*args, **(kwargs or {}))


@loop_and_foreach
@each_case
def test_gradients_are_left_alone(case: Case, foreach: bool) -> None:
    ours = case.ours(parameters(), foreach=foreach)
    for step in range(3):
        give_gradients(leaves(ours), step=step)
        gradients = [p.grad for p in leaves(ours) if p.grad is not None]
        before = [(g.clone(), g._version) for g in gradients]
        ours.step()
        assert all(p.grad is g for p, g in zip(leaves(ours), gradients, strict=True))
        assert all(
            torch.equal(g, b) and g._version == v
            for g, (b, v) in zip(gradients, before, strict=True)
        )


@loop_and_foreach
@each_case
def test_a_step_raises_the_version_of_what_it_changes(case: Case, foreach: bool) -> None:
    # A backward pass through a graph made before the step must notice, also when blocks were cut.
    p = nn.Parameter(torch.ones(engines.CPU_BLOCK + 37_856))
    ours = case.ours([p], foreach=foreach)
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@each_case
def test_nothing_global_is_touched(case: Case) -> None:
    def flags() -> tuple[object, ...]:
        return (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            list(warnings.filters),
            torch.get_rng_state().tolist(),
        )

    before = flags()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for _ in train(case.ours(parameters()), steps=range(2)):
                pass
            assert torch.is_grad_enabled() is grad
    assert flags() == before


class Allocations(TorchDispatchMode):
    """The most bytes of new tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for t in tensors_in(result):
            storage = t.untyped_storage()
            if storage.data_ptr() not in given | self.known:
                self.known.add(storage.data_ptr())
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                finalize(storage, self.freed, storage.data_ptr(), storage.nbytes())
        return result

    def freed(self, pointer: int, nbytes: int) -> None:
        self.known.discard(pointer)
        self.alive -= nbytes


def tensors_in(nested: Any) -> list[torch.Tensor]:
    flat, _ = torch.utils._pytree.tree_flatten(nested)
    return [t for t in flat if isinstance(t, torch.Tensor)]


@pytest.mark.slow
@loop_and_foreach
@each_richest
def test_temporaries_stay_small_whatever_the_models_size(case: Case, foreach: bool) -> None:
    dtype = torch.float64
    p = nn.Parameter(torch.ones(5_000_000, dtype=dtype))
    small = [nn.Parameter(torch.ones(100_000, dtype=dtype)) for _ in range(30)]
    ours = case.ours([p, *small], foreach=foreach)
    for q in (p, *small):
        q.grad = torch.ones_like(q)
    ours.step()  # makes the state
    with Allocations() as allocations:
        ours.step()
    assert allocations.peak < 16 * 2**20
    if case.optimizer in ("AdaGrad", "RMSProp", "Adam", "AdamW"):
        assert allocations.peak > 0, "the measurement is blind: these rules need a temporary"


def code_lines(file: Path) -> int:
    """Lines that are not blank, not comments and not docstrings; in C, directives count."""
    text = file.read_text(encoding="utf-8")
    comment = "#" if file.suffix == ".py" else "//"
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)) if file.suffix == ".py" else ():
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith(comment) and number not in documented
        for number, line in enumerate(text.splitlines(), start=1)
    )


# What runs kernels: symbols, the two targets with their templates, the cache, and the engine.
KERNELS = {"_symbols", "_kernels", "_fused", "_cpp", "_cuda", "_disk_cache"}
KERNELS |= {"kernel", "kernel_types"}


def test_the_package_stays_small() -> None:
    files = [f for f in PACKAGE.iterdir() if f.suffix in (".py", ".cpp", ".cu", ".h")]
    lines = {file.name: code_lines(file) for file in files}
    assert lines.pop("equivalence.py") <= 130  # a tool for any optimizer, and no part of ours
    assert lines.pop("groups.py") <= 40
    kernels = sum(n for name, n in lines.items() if Path(name).stem in KERNELS)
    assert kernels <= 1100
    assert sum(lines.values()) - kernels <= 1300


# Names of torch's that are not public, and what they are for.
PRIVATE = {
    "torch._foreach_*": "many tensors in one call",
    "torch._C._len_torch_dispatch_stack": "whether somebody wants to see operations",
    "torch._C._functorch.peek_interpreter_stack": "whether tensors are those of a transform",
    "torch._C._dynamo.guards.TensorGuards": "whether tensors are as they were",
    "torch.optim.optimizer._get_capturable_supported_devices": "torch's own list",
    "torch.optim.optimizer._global_optimizer_pre_hooks": "hooks of every optimizer",
    "torch.optim.optimizer._global_optimizer_post_hooks": "those after a step",
    "torch._C._autograd._profiler_enabled": "whether somebody wants to see a step by name",
    "torch.nn.modules.batchnorm._NormBase": "what all batch norms have in common",
}


def private_names(file: Path) -> set[str]:
    """Names of torch's in which a part begins with one underscore."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if a.name == "torch"}
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch"):
            modules |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            found |= {f"{node.module}.{a.name}" for a in node.names if a.name.startswith("_")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *path = ast.unparse(node).split(".")
            if root in modules:
                found.add(".".join([modules[root], *path]))
        if isinstance(node, ast.JoinedStr) and "_foreach_" in ast.unparse(node):
            found.add("torch._foreach_*")
    # Of torch._C._dynamo.guards.TensorGuards only the whole counts, not its beginnings.
    whole = {name for name in found if not any(other.startswith(name + ".") for other in found)}
    private = {n for n in whole if any(re.match("_[^_]", part) for part in n.split("."))}
    return {re.sub("_foreach_.+", "_foreach_*", name) for name in private}


def test_private_names_of_torch_are_few_and_known() -> None:
    assert set().union(*map(private_names, PACKAGE.glob("*.py"))) == set(PRIVATE)


RULES = {"sgd.py": "sgd", "adagrad.py": "adagrad", "rmsprop.py": "rmsprop", "adam.py": "adam"}


def rule_of(file: str) -> ast.FunctionDef:
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == RULES[file])


VOCABULARY = {"add", "sqrt", "addcmul"} | {
    f"{word}_"
    for word in ("add", "mul", "div", "sqrt", "lerp", "addcmul", "addcdiv", "clamp_min", "copy")
}


@pytest.mark.parametrize("file", RULES)
def test_a_rule_keeps_to_the_vocabulary(file: str) -> None:
    calls = [n.func for n in ast.walk(rule_of(file)) if isinstance(n, ast.Call)]
    words = {f.attr for f in calls if isinstance(f, ast.Attribute)}
    assert words
    assert words <= VOCABULARY
    assert not any(isinstance(f, ast.Name) for f in calls)


@pytest.mark.parametrize("file", RULES)
def test_a_rule_branches_on_none_and_bool_but_never_on_a_number(file: str) -> None:
    rule = rule_of(file)
    flags = {
        a.arg
        for a in rule.args.kwonlyargs
        if isinstance(a.annotation, ast.Name) and a.annotation.id == "bool"
    }
    for node in ast.walk(rule):
        if isinstance(node, (ast.If, ast.IfExp)):
            test = node.test
            on_none = isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.IsNot))
            assert on_none or (isinstance(test, ast.Name) and test.id in flags), ast.unparse(test)
        assert not isinstance(node, (ast.While, ast.Assert, ast.Match))


def test_importing_the_package_imports_no_kernels() -> None:
    # It would take twice as long.
    program = "import sys, torch_scratch_optim; print('torch_scratch_optim._fused' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_a_training_step_imports_no_compiler_of_torchs(fused: bool) -> None:
    # Its import takes longer than the first steps of training.
    program = f"""
import sys, torch
from torch_scratch_optim import ScratchSGD
p = torch.ones(3, requires_grad=True)
optimizer = ScratchSGD([p], fused={fused})
optimizer.add_param_group({{"params": [torch.ones(2, requires_grad=True)]}})
optimizer.zero_grad()
p.sum().backward()
optimizer.step()
print("torch._dynamo" in sys.modules)
optimizer.zero_grad(set_to_none=False)
print(p.grad.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["False", "[0.0, 0.0, 0.0]", ""]
