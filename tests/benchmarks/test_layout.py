"""One folder for each command, which imports `common` and itself alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
HEAVY = {
    "PIL", "distributed", "jinja2", "matplotlib", "pandas", "rich.progress", "scipy", "tensorboard",
    "torch.utils.tensorboard", "torchvision",
}  # fmt: skip
PROGRAMS = sorted(
    ".".join(path.parent.relative_to(BENCHMARKS).parts) for path in BENCHMARKS.rglob("__main__.py")
)[1:]
COMMANDS = sorted(main.parent.name for main in BENCHMARKS.glob("*/__main__.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports, with their full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", [*COMMANDS, "common"])
def test_a_command_imports_common_and_itself(folder: str) -> None:
    files = list((BENCHMARKS / folder).rglob("*.py"))
    names = set().union(*map(imported, files))
    own = {name.split(".")[1] for name in names if name.startswith("benchmarks.")}
    assert own <= {folder, "common"}
    assert own


def test_nothing_stands_beside_the_folders_but_the_tables_of_the_site() -> None:
    assert {path.name for path in BENCHMARKS.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "facts.py",
    }


def test_what_trains_draws_nothing() -> None:
    for name in ("common/training", "common/implementations", "mnist/pair"):
        names = imported(BENCHMARKS / f"{name}.py")
        assert names
        assert not any(n.startswith(("matplotlib", "benchmarks.common.plots")) for n in names)


def test_the_package_does_not_import_the_benchmarks() -> None:
    for path in (ROOT / "torch_scratch_optim").rglob("*.py"):
        assert not any(name.startswith("benchmarks") for name in imported(path)), path


@pytest.mark.slow
def test_help_imports_nothing_that_takes_long() -> None:
    """A parser needs torch alone, which all commands import."""
    code = f"""
import contextlib, io, runpy, sys
for name in {PROGRAMS!r}:
    sys.argv = [name, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_module("benchmarks." + name, run_name="__main__")
    assert "usage: python -m benchmarks." + name in shown.getvalue()
    print(name, *({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split("\n") == [*PROGRAMS, ""]


def test_benchmarks_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    for name in COMMANDS:
        assert f"python -m benchmarks.{name} " in done.stdout
