"""What a wheel installs: metadata, and the files that the package needs besides its modules.

These tests concern a wheel that is installed; `.ci/run` builds one, and runs them outside the
checkout.
"""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

import torch_scratch_optim

PACKAGE = Path(torch_scratch_optim.__file__).parent


def installed() -> Distribution:
    """The distribution that the imported package belongs to; skips where there is none."""
    try:
        found = distribution("torch-scratch-optim")
    except PackageNotFoundError:
        pytest.skip("the package is not installed, but on the path")
    place = Path(str(found.locate_file("torch_scratch_optim")))
    if found.read_text("WHEEL") is None or place.resolve() != PACKAGE.resolve():
        pytest.skip("the package is imported from a checkout, and from no wheel")
    return found


def test_wheel_has_the_metadata_of_the_project() -> None:
    metadata = installed().metadata
    assert metadata["Name"] == "torch-scratch-optim"
    assert metadata["Version"] == torch_scratch_optim.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    required = metadata.get_all("Requires-Dist") or []
    assert [r for r in required if "extra ==" not in r] == ["torch>=2.11"]
    extras = {"test", "bench", "cluster", "docs", "integrations", "dev"}
    assert set(metadata.get_all("Provides-Extra") or []) == extras


@pytest.mark.parametrize("name", ["py.typed", "kernel.cpp", "kernel.cu", "kernel_types.h"])
def test_wheel_holds_types_and_templates_of_kernels(name: str) -> None:
    assert f"torch_scratch_optim/{name}" in {str(file) for file in installed().files or []}
    assert (PACKAGE / name).is_file()


def test_wheel_holds_nothing_but_the_package() -> None:
    folders = {file.parts[0] for file in installed().files or []}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"torch_scratch_optim"}
