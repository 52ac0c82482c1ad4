"""What all tests share: the device, a cache of kernels, and what is skipped where it cannot run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the tensors of the tests are: cpu (the default), cuda, cuda:1, …",
    )


def pytest_configure(config: pytest.Config) -> None:
    # For the workers, who share the cores: a thread with nothing to do is to let another's run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["TORCH_SCRATCH_TEST_DEVICE"] = checked(config.getoption("--device"))
    if config.cache:
        # So that each kernel is compiled once for all workers and runs.
        folder = config.cache.mkdir("kernels")
        folder.chmod(0o700)  # what others could write, the package does not load
        os.environ.setdefault("TORCH_SCRATCH_CACHE", str(folder))


def checked(device: str) -> str:
    """The name of a device that this torch can use.

    Raises:
        pytest.UsageError: it cannot.
    """
    if device == "cpu":
        return device
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise pytest.UsageError(f"--device {device}: {str(problem).splitlines()[0]}") from None
    return device


# Folders of tests that are about CPUs alone; single files and tests have the mark `cpu`.
ABOUT_CPUS = {"benchmarks", "compilation", "cuda_without_gpu", "fused", "integrations"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    if device == "cpu":
        return
    skip = pytest.mark.skip(reason=f"about CPUs alone, and so not for --device {device}")
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        if folder in ABOUT_CPUS or item.get_closest_marker("cpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
