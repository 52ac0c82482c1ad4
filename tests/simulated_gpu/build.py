"""Compile the device, once for each torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = [HERE / "device.cpp", HERE / "formulas.h"]
FLAGS = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-DTORCH_EXTENSION_NAME=_device"]


def library() -> Path:
    key = hashlib.sha256(
        "".join([torch.__version__, str(sys.implementation.cache_tag), *FLAGS]).encode()
    )
    for source in SOURCES:
        key.update(source.read_bytes())
    return HERE.parents[1] / "build" / f"simulated_gpu_{key.hexdigest()[:16]}" / "_device.so"


def build() -> None:
    """Compile the extension if there is none.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    if library().exists():
        return
    from torch.utils.cpp_extension import include_paths, library_paths

    from torch_scratch_optim import _cpp

    library().parent.mkdir(parents=True, exist_ok=True)
    folders = [*include_paths(), sysconfig.get_paths()["include"]]
    unfinished = library().with_suffix(f".{os.getpid()}")
    command = [*_cpp.require_compiler(), *FLAGS, *[f"-I{folder}" for folder in folders]]
    command += [str(SOURCES[0]), "-o", str(unfinished), *[f"-L{path}" for path in library_paths()]]
    command += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the simulated GPU cannot be compiled:\n{done.stderr}")
    unfinished.replace(library())
