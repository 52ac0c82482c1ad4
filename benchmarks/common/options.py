"""Options that several commands have, in the same words."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common.claims import LOCK
from benchmarks.common.command import RUNS, CannotRun, Names, name_among, whole_number
from benchmarks.common.data import DATA_DIR_VARIABLE, KINDS

ABSENT = argparse.SUPPRESS  # for a command that must tell what was given from what was left out


class Options(Protocol):
    """A parser or a group of options in one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


def add_names(options: Options, option: str, valid: Iterable[str], default: str = "all") -> None:
    valid = list(valid)
    options.add_argument(
        f"--{option}",
        nargs="+",
        action=Names,
        type=name_among(valid),
        metavar="NAME",
        help=f"any of: {', '.join(valid)} (default: {default})",
    )


def add_seed(options: Options, of_what: str, default: int | str = 0) -> None:
    options.add_argument(
        "--seed",
        type=whole_number("seed"),
        default=default,
        metavar="N",
        help=f"of {of_what} (default: 0)",
    )


def add_device(options: Options, default: str = "auto") -> None:
    options.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=default,
        help="where to compute (default: auto)",
    )


def add_data(options: Options, default: str = "auto") -> None:
    options.add_argument(
        "--dataset",
        choices=KINDS,
        default=default,
        help="mnist insists on MNIST; synthetic takes digits that the program generates; auto "
        "takes MNIST, or synthetic digits where MNIST is neither there nor to be downloaded "
        "(default: auto)",
    )
    add_data_dir(options)


def add_data_dir(options: Options) -> None:
    options.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where MNIST/raw/ is (default: the environment variable "
        f"{DATA_DIR_VARIABLE}, else data, to which it is downloaded)",
    )


def add_out(options: Options, what: str = "where the results go") -> None:
    options.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"{what} (default: a new directory in runs, named by the time)",
    )


def default_out() -> Path:
    return RUNS / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def check_new(out: Path, hint: str = "") -> None:
    if any(path.name != LOCK for path in out.iterdir()):
        raise CannotRun(f"--out {out} is not empty; choose another directory{hint}")
