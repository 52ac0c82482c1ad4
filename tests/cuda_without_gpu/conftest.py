"""A GPU that is a CPU, and NVIDIA's compiler without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from torch_scratch_optim import _cpp, _fused

from .on_cpu import Cuda, forget, install


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture
def cuda(folder: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """A GPU that is a CPU."""
    try:
        _cpp.require_compiler()
    except RuntimeError as problem:
        pytest.skip(f"kernels are run as C++: {problem}")
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(shared_folder / "on_cpu"))
    made = Cuda(folder)
    forget()
    install(made, monkeypatch)
    yield made
    forget()


@pytest.fixture
def compiling(folder: Path, shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """The real NVRTC, with nothing on the path, and a driver that runs nothing."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVIDIA's cuda-bindings")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as problem:
        pytest.skip(f"NVRTC's library cannot be loaded: {problem}")
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(shared_folder / "cubins"))
    made = Cuda(folder)
    made.runs = False
    forget()
    install(made, monkeypatch, compiler=False)
    # There is nothing to be proved of a kernel that does not run.
    monkeypatch.setattr(_fused, "_has_the_bits_of_the_loop", lambda *_: True)
    yield made
    forget()


@pytest.fixture
def fresh(cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Nothing has been compiled."""
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(tmp_path))
    return cuda
