"""A compiler and a cache of each test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .common import REAL_COMPILER, Compiler


@pytest.fixture(scope="session")
def store(shared_folder: Path) -> Path:
    """What compilers have made in other tests."""
    folder = shared_folder / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    if sys.platform == "win32":
        pytest.skip("forks, signals and shell scripts")
    if not REAL_COMPILER:
        pytest.skip("there is no C++ compiler")
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
