"""Measure the memory that gradient release saves in a training step.

python -m benchmarks.gradient_release --help

All gradients together take as much memory as the parameters. With an optimizer for each parameter,
run by a hook, they never exist together. The recipe is `release_gradients` in `release.py`; the
parameters come out the same, bit for bit, as this command checks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.common.command import Job, Parser, conduct, pick_device, run, say
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import (
    add_budget,
    add_device,
    add_names,
    add_number,
    add_out,
    add_seed,
)
from benchmarks.common.reading import (
    Shape,
    among,
    begin_results,
    many,
    perhaps,
    shaped,
    text,
    whole,
    yes_or_no,
)
from benchmarks.common.record import conditions, write_json
from benchmarks.common.workers import workers
from benchmarks.gradient_release.release import BATCH, STEPS, measure

PROGRAM = "python -m benchmarks.gradient_release"
RESULT = "gradient_release.json"
BUDGETS = {
    "quick": {"width": 500, "layers": 4},
    "standard": {"width": 2_500, "layers": 16},
}
MIB = 2**20
RUN: Shape = {
    "optimizer": among(OPTIMIZERS),
    "released": yes_or_no,
    **dict.fromkeys(("parameters", "parameter_bytes"), whole()),
    "peak_extra_bytes": perhaps(whole()),
    "digest": text,
}
FACTS = {
    "peak_extra_bytes": "rise of resident memory above that of the parameters and the optimizer's "
    "state, over one forward pass, backward pass and step, after two others",
    "digest": "SHA-256 of all parameters after the last step; equal in both ways, or the command "
    "fails",
}


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Measure what gradient release saves at the peak of a training step.",
    )
    add_names(parser, "optimizers", OPTIMIZERS, "momentum, adamw")
    sizes = {
        budget: f"{model['layers']} layers of {model['width']}" for budget, model in BUDGETS.items()
    }
    add_budget(parser, sizes)
    for name in ("width", "layers"):
        add_number(parser, name, "of the model, a chain of square layers (default: of the budget)")
    add_device(parser)
    add_seed(parser, "parameters and data")
    add_out(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return conduct(build_parser(), arguments, _work)


def _work(given: argparse.Namespace, job: Job) -> int:
    out = job.begin(RESULT)
    device = pick_device(given.device)
    sizes = {name: vars(given)[name] or size for name, size in BUDGETS[given.budget].items()}
    model = sizes | {"seed": given.seed, "device": device.type}
    optimizers = given.optimizers or ["momentum", "adamw"]
    settings = model | {"optimizers": optimizers, "batch": BATCH, "steps": STEPS}
    begun = {
        "settings": settings | {"dtype": "float32", "budget": given.budget},
        "facts": FACTS,
        **conditions(device, given.command),
        "runs": [],
    }
    recorded = begin_results(out / RESULT, begun, {"runs": many(shaped(RUN))}, given.resume)
    job.keep(out, "finished measurements")
    runs: list[dict[str, Any]] = recorded["runs"]
    for optimizer in optimizers[len(runs) // 2 :]:
        runs += [_apart(optimizer=optimizer, released=way, **model) for way in (False, True)]
        write_json(out / RESULT, recorded)
    for usual, released in zip(runs[::2], runs[1::2], strict=True):
        say(job.console, in_words(usual, released))
    if any(a["digest"] != b["digest"] for a, b in zip(runs[::2], runs[1::2], strict=True)):
        say(job.console, "The parameters differ: gradient release went wrong")
        return 1
    job.end(out, RESULT, recorded=(RESULT,))
    return 0


def _apart(**settings: Any) -> dict[str, Any]:
    """Measure in a process of its own, whose memory holds nothing of another run."""
    with workers(1, torch.get_num_threads) as one:
        return one.submit(partial(measure, **settings)).result()


def in_words(usual: dict[str, Any], released: dict[str, Any]) -> str:
    title = OPTIMIZERS[usual["optimizer"]].title
    size = f"{usual['parameters'] / 1e6:.1f} M parameters ({_mib(usual['parameter_bytes'])})"
    before, after = _mib(usual["peak_extra_bytes"]), _mib(released["peak_extra_bytes"])
    return f"{title}, {size}: a step takes {before} more, with gradient release {after}"


def _mib(size: int | None) -> str:
    return "an uncounted amount" if size is None else f"{size / MIB:.0f} MiB"


if __name__ == "__main__":
    run(main)
