"""The house has floors: nothing imports from above itself, and the package knows no benchmarks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = [
    {"claims", "command", "data", "drawn", "landscapes", "lookalikes", "memory", "nets",
     "optimizers", "options", "option_cases", "processes", "reading", "record", "shapes",
     "signals", "workers"},
    {"trainee", "training", "report", "pictures", "entrants", "stopwatch", "step_report", "atlas",
     "equivalence_report"},
    {"mnist", "mnist_options", "step_time", "equivalence", "gradient_release", "facts"},
]  # fmt: skip


def imported(path: Path) -> set[str]:
    """The modules that a file imports, with their full names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_module_has_its_floor() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__"}
    assert modules == set().union(*FLOORS)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_nothing_is_imported_from_a_floor_above(floor: int) -> None:
    above = {f"benchmarks.{name}" for names in FLOORS[floor + 1 :] for name in names}
    for name in FLOORS[floor]:
        assert not imported(ROOT / "benchmarks" / f"{name}.py") & above, name


def test_who_trains_does_not_plot_and_who_plots_does_not_train() -> None:
    for name in ("trainee", "training", "entrants", "stopwatch"):
        names = imported(ROOT / "benchmarks" / f"{name}.py")
        assert not any(found.startswith(("matplotlib", "benchmarks.pictures")) for found in names)
    for name in ("report", "pictures"):
        assert "benchmarks.training" not in imported(ROOT / "benchmarks" / f"{name}.py")


def test_the_package_does_not_import_the_benchmarks() -> None:
    for path in (ROOT / "torch_scratch_optim").rglob("*.py"):
        assert not any(name.startswith("benchmarks") for name in imported(path)), path
