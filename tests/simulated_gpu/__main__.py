"""Run Python with the simulated GPUs, in the processes that it starts as well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .build import build

HERE = Path(__file__).parent


def main() -> int:
    build()
    path = [str(HERE / "site"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    return subprocess.run([sys.executable, *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
