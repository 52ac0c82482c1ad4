"""What all tests share: the device, a cache of kernels, and what is skipped where it cannot run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

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
    cache: pytest.Cache | None = getattr(config, "cache", None)  # with -p no:cacheprovider, none
    if cache:
        # So that each kernel is compiled once for all workers and runs.
        folder = cache.mkdir("kernels")
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


# What the tests of a folder import besides torch, and the extra that installs it.
NEEDS = {
    "benchmarks": (("tensorboard", "matplotlib", "rich", "scipy", "jinja2", "filelock"), "bench"),
}


class NotInstalled(pytest.Collector):
    """A folder that is skipped for what it needs."""

    reason = ""

    def collect(self) -> NoReturn:
        pytest.skip(self.reason, allow_module_level=True)


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if path.parent != Path(__file__).parent or path.name not in NEEDS:
        return None
    packages, extra = NEEDS[path.name]
    missing = [name for name in packages if find_spec(name) is None]
    if not missing:
        return None
    skipped: NotInstalled = NotInstalled.from_parent(parent, name=path.name)
    skipped.reason = f"without {', '.join(missing)}: pip install -e '.[{extra}]'"
    return skipped


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
