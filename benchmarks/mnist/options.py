"""The command line of `python -m benchmarks.mnist`: what can be asked for, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.common.command import Parser, name_among
from benchmarks.common.data import TEST_SIZE, TRAIN_SIZE
from benchmarks.common.implementations import ENGINES
from benchmarks.common.nets import ACTIVATIONS, DEPTH, WIDTH
from benchmarks.common.optimizers import DEFAULT_NAMES, OPTIMIZERS
from benchmarks.common.options import (
    ABSENT,
    add_budget,
    add_choice,
    add_data,
    add_device,
    add_names,
    add_number,
    add_out,
    add_seed,
)
from benchmarks.common.reading import positive

PROGRAM = "python -m benchmarks.mnist"
DEFAULTS: dict[str, Any] = {
    "nets": list(ACTIVATIONS),
    "optimizers": list(DEFAULT_NAMES),
    "lr": {},
    "budget": "standard",
    "batch_size": 128,
    "seed": 0,
    "depth": DEPTH,
    "width": WIDTH,
    "device": "auto",
    "engine": "default",
    "torch_engine": "loop",
    "capture": None,
    "reference": True,
    "dataset": "auto",
}
BUDGETS: dict[str, dict[str, int]] = {
    "quick": {"epochs": 1, "train_size": 6_000, "test_size": 1_000},
    "standard": {"epochs": 3, "train_size": TRAIN_SIZE, "test_size": TEST_SIZE},
}
OF_THE_JOB = (*DEFAULTS, *BUDGETS["standard"], "data_dir")
EXAMPLES = f"""examples:
  {PROGRAM}
  {PROGRAM} --optimizers sgd adam --nets relu --lr sgd=0.5 adam=0.0003 --epochs 1
  {PROGRAM} --resume

Where other programs keep the processor busy, set OMP_NUM_THREADS=1 in the environment:
otherwise torch's threads lose much time there, waiting for one another.
"""


def build_parser() -> Parser:
    """Settings of the job appear in the result only if they were given.

    A resumed job must tell an option that was given from one that was left out.
    """
    parser = Parser(
        prog=PROGRAM,
        description="Train a deep sigmoid net and a deep ReLU net on MNIST with each optimizer,\n"
        "twice in lockstep: with ours and with torch's. Report how far the two differ,\n"
        "and compare the optimizers.",
        epilog=EXAMPLES,
        argument_default=ABSENT,
    )

    what = parser.add_argument_group("what is trained")
    add_budget(
        what,
        {"quick": "1 epoch of 6,000 images, to see that it works", "standard": "3 epochs of all"},
        ABSENT,
    )
    add_names(what, "optimizers", OPTIMIZERS, " ".join(DEFAULT_NAMES))
    add_names(what, "nets", ACTIVATIONS, "both")
    add_number(what, "depth", _hint("hidden layers", "depth"), ABSENT)
    add_number(what, "width", _hint("units in each", "width"), ABSENT)
    what.add_argument(
        "--no-reference",
        dest="reference",
        action="store_false",
        help="train ours alone, without the reference run with torch's",
    )
    for option, text in (("engine", "of ours"), ("torch-engine", "of torch's")):
        default = DEFAULTS[option.replace("-", "_")]
        add_choice(what, option, ENGINES, f"{text} (default: {default})", ABSENT)

    how = parser.add_argument_group("how it is trained")
    how.add_argument(
        "--capture",
        action=argparse.BooleanOptionalAction,
        help="replay a CUDA graph: of our whole step, of torch's forward and backward "
        "(default: on a GPU)",
    )
    add_number(how, "epochs", "passes over the images (default: of the budget)", ABSENT)
    add_number(
        how,
        "batch-size",
        _hint("images in a batch; the last of an epoch may have fewer", "batch_size"),
        ABSENT,
    )
    rates = ", ".join(f"{name}={OPTIMIZERS[name].lr:g}" for name in OPTIMIZERS)
    how.add_argument(
        "--lr",
        nargs="+",
        action=_Rates,
        type=_rate,
        metavar="NAME=VALUE",
        help=f"learning rates (default: {rates})",
    )
    add_seed(how, "the initial weights and the order of the images", ABSENT)
    add_device(how, ABSENT)

    data = parser.add_argument_group("the data")
    add_data(data, ABSENT)
    add_number(data, "train-size", "training images (default: of the budget)", ABSENT)
    add_number(data, "test-size", "test images (default: of the budget)", ABSENT)

    result = parser.add_argument_group("the result")
    add_out(result, "directory of this job")
    return parser


def _hint(text: str, name: str) -> str:
    return f"{text} (default: {DEFAULTS[name]})"


class _Rates(argparse.Action):
    """Collect learning rates over repeated options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        rates = dict(getattr(namespace, self.dest, {}))
        assert isinstance(values, list), "argparse collects what nargs='+' allows in a list"
        for name, value in values:
            if name in rates:
                parser.error(f"argument --lr: {name} is given twice")
            rates[name] = value
        setattr(namespace, self.dest, rates)


def _rate(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, for instance adam=0.001")
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not positive(rate):
        raise argparse.ArgumentTypeError(f"{text!r}: the learning rate must be a positive number")
    return name_among(OPTIMIZERS)(name), rate
