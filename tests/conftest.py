"""What tests of several rooms share."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    # For the workers, who share the cores: a thread with nothing to do is to let another's run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
