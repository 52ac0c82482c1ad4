"""Options that several commands have, with the same names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common.command import RUNS, Names, name_among, whole_number
from benchmarks.common.data import DATA_DIR_VARIABLE, KINDS

ABSENT = argparse.SUPPRESS  # for a command that must tell what was given from what was left out


class OptionGroup(Protocol):
    """A parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


def add_choice(
    options: OptionGroup, option: str, valid: Iterable[str], help: str, default: str
) -> None:
    """An option that has one of a few values."""
    valid = list(valid)
    options.add_argument(
        f"--{option}",
        type=name_among(valid),
        default=default,
        metavar=f"{{{','.join(valid)}}}",
        help=help,
    )


def add_names(
    options: OptionGroup, option: str, valid: Iterable[str], default: str = "all"
) -> None:
    """An option that has any of a few values."""
    valid = list(valid)
    options.add_argument(
        f"--{option}",
        nargs="+",
        action=Names,
        type=name_among(valid),
        metavar="NAME",
        help=f"any of: {', '.join(valid)} (default: {default})",
    )


def add_number(
    options: OptionGroup, option: str, help: str, default: Any = None, limits: str = ""
) -> None:
    """A whole number within the limits of the option's own name, or of another one."""
    options.add_argument(
        f"--{option}",
        type=whole_number(limits or option.replace("-", "_")),
        default=default,
        metavar="N",
        help=help,
    )


def add_budget(options: OptionGroup, budgets: Mapping[str, str], default: str = "standard") -> None:
    """How much is run; each budget with a few words on it."""
    texts = "; ".join(f"{name}: {text}" for name, text in budgets.items())
    shown = "standard" if default == ABSENT else default
    add_choice(options, "budget", budgets, f"{texts} (default: {shown})", default)


def add_seed(options: OptionGroup, of_what: str, default: int | str = 0) -> None:
    add_number(options, "seed", f"of {of_what} (default: 0)", default)


def add_device(options: OptionGroup, default: str = "auto") -> None:
    add_choice(
        options, "device", ("auto", "cpu", "cuda"), "where to compute (default: auto)", default
    )


def add_data(options: OptionGroup, default: str = "auto") -> None:
    add_choice(
        options,
        "dataset",
        KINDS,
        "mnist: MNIST alone; synthetic: digits that the program generates; auto: MNIST, or "
        "synthetic digits where MNIST is neither there nor can be downloaded (default: auto)",
        default,
    )
    add_data_dir(options)


def add_data_dir(options: OptionGroup) -> None:
    options.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where MNIST/raw/ is (default: the environment variable "
        f"{DATA_DIR_VARIABLE}, else data, to which it is downloaded)",
    )


def add_out(options: OptionGroup, what: str = "where the results go") -> None:
    """Where results go, whether a job goes on, and whether its results are recorded."""
    options.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"{what} (default: a new directory in {RUNS}, named by the time)",
    )
    options.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help=f"go on with the job in --out, or with the newest in {RUNS}; what is finished is kept",
    )
    options.add_argument(
        "--record",
        action="store_true",
        default=False,
        help="copy the results to benchmarks/results, from which the documentation takes its "
        "figures; not with synthetic digits or --budget quick",
    )
