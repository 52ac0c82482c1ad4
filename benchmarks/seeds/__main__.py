"""How many seeds does a ranking of optimizers need?

python -m benchmarks.seeds --help
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.command import (
    CannotRun,
    Job,
    Parser,
    bars,
    conduct,
    pick_device,
    run,
    say,
    whole_number,
)
from benchmarks.common.data import Digits
from benchmarks.common.nets import ACTIVATIONS
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.options import (
    add_budget,
    add_data,
    add_device,
    add_names,
    add_out,
    add_seed,
)
from benchmarks.common.reading import (
    Shape,
    among,
    begin_results,
    many,
    positive,
    shaped,
    share,
    whole,
)
from benchmarks.common.record import conditions, write_atomically, write_json
from benchmarks.common.workers import workers
from benchmarks.seeds.training import BATCH_SIZE, DEPTHS, INPUTS, WIDTH, begin, split, train

PROGRAM = "python -m benchmarks.seeds"
RESULT, FIGURE = "seeds.json", "seeds.png"
RATES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "relu": {
        "sgd": (0.1, 0.3, 1, 3),
        "momentum": (0.01, 0.03, 0.1, 0.3),
        "adagrad": (0.01, 0.03, 0.1, 0.3),
        **dict.fromkeys(("rmsprop", "adam", "adamw"), (0.001, 0.003, 0.01, 0.03)),
    },
    "sigmoid": {
        "sgd": (0.3, 1, 3, 10),
        "momentum": (0.03, 0.1, 0.3, 1),
        "adagrad": (0.03, 0.1, 0.3, 1),
        **dict.fromkeys(("rmsprop", "adam", "adamw"), (0.003, 0.01, 0.03, 0.1)),
    },
}
STACK = 50  # seeds that are trained at once; their activations should fit a cache


@dataclass(frozen=True)
class Sizes:
    seeds: int
    epochs: int
    train_size: int = 2_000
    validation_size: int = 1_000
    test_size: int = 2_000


BUDGETS = {
    "quick": Sizes(seeds=12, epochs=2),
    "standard": Sizes(seeds=100, epochs=4),
    "full": Sizes(seeds=400, epochs=4),
}
RUNS: Shape = {
    "net": among(RATES),
    "optimizer": among(OPTIMIZERS),
    "lr": positive,
    "first_seed": whole(),
    "validation_accuracy": many(share),
    "test_accuracy": many(share),
}
EXAMPLES = f"""examples:
  {PROGRAM} --budget quick
  {PROGRAM} --nets sigmoid --optimizers rmsprop adam --seeds 1000
"""


def build_parser(budgets: Mapping[str, Sizes] = BUDGETS) -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Train every optimizer from many seeds, and draw from them how often a\n"
        "comparison of fewer seeds has the same order.",
        epilog=EXAMPLES,
    )
    add_budget(
        parser,
        {name: f"{size.seeds} seeds, {size.epochs} epochs" for name, size in budgets.items()},
    )
    add_names(parser, "nets", ACTIVATIONS)
    add_names(parser, "optimizers", OPTIMIZERS)
    for name, of_what in (
        ("seeds", "how many (default: of the budget)"),
        ("stack", f"seeds that are trained at once (default: {STACK}, on a GPU all)"),
        (
            "workers",
            "processes that train (default: one for each core, on a GPU 0: this one trains)",
        ),
    ):
        parser.add_argument(f"--{name}", type=whole_number(name), metavar="N", help=of_what)
    add_seed(parser, "the first run; the others follow")
    add_device(parser)
    add_data(parser)
    add_out(parser)
    return parser


def main(arguments: Sequence[str] | None = None, budgets: Mapping[str, Sizes] = BUDGETS) -> int:
    return conduct(build_parser(budgets), arguments, partial(_work, budgets))


def _work(budgets: Mapping[str, Sizes], given: Any, job: Job) -> int:
    optimizers = given.optimizers or list(OPTIMIZERS)
    if len(optimizers) < 2:
        raise CannotRun("a ranking needs two --optimizers or more")
    sizes = asdict(budgets[given.budget])
    sizes["seeds"] = given.seeds or sizes["seeds"]
    if sizes["seeds"] < 2:
        raise CannotRun("a comparison needs two --seeds or more")
    out, device = job.begin(RESULT), pick_device(given.device)
    on_gpu = device.type == "cuda"  # one process feeds it, with all seeds at once
    images = sizes["train_size"] + sizes["validation_size"]
    digits = job.load_digits(given.dataset, given.data_dir, device, images, sizes["test_size"])
    settings = {
        "budget": given.budget,
        "nets": given.nets or list(ACTIVATIONS),
        "optimizers": optimizers,
        "seed": given.seed,
        **sizes,
        "stack": given.stack or (sizes["seeds"] if on_gpu else STACK),
        "depths": DEPTHS,
        "width": WIDTH,
        "inputs": INPUTS,
        "batch_size": BATCH_SIZE,
        "dataset": digits.name,
    }
    begun = {"settings": settings, **conditions(device, given.command), "runs": []}
    recorded = begin_results(out / RESULT, begun, {"runs": many(shaped(RUNS))}, given.resume)
    job.keep(out, "finished runs")
    usual = 0 if on_gpu else os.cpu_count() or 1
    count = usual if given.workers is None else given.workers
    _train_missing(recorded, out / RESULT, count, digits, job)
    _answer(recorded, job)
    write_json(out / RESULT, recorded)
    from benchmarks.seeds.figure import draw  # matplotlib takes a second to import

    write_atomically(out / FIGURE, draw(recorded))
    job.end(out, FIGURE, recorded=(RESULT, FIGURE))
    return 0


def _train_missing(
    recorded: dict[str, Any], path: Path, count: int, digits: Digits, job: Job
) -> None:
    settings, runs = recorded["settings"], recorded["runs"]
    first, past = settings["seed"], settings["seed"] + settings["seeds"]
    blocks = [
        (net, optimizer, lr, range(start, min(start + settings["stack"], past)))
        for start in range(first, past, settings["stack"])
        for net in settings["nets"]
        for optimizer in settings["optimizers"]
        for lr in RATES[net][optimizer]
    ]
    known = {(run["net"], run["optimizer"], run["lr"], run["first_seed"]) for run in runs}
    missing = [block for block in blocks if (*block[:3], block[3].start) not in known]
    data, epochs = split(digits, settings["train_size"]), settings["epochs"]
    with bars(job.console) as shown, ExitStack() as stack:
        bar = shown.add_task("runs", total=len(blocks), completed=len(blocks) - len(missing))

        def keep(finished: dict[str, Any]) -> None:
            runs.append(finished)
            write_json(path, recorded)
            shown.advance(bar)

        if not count:
            for block in missing:
                keep(train(*block, epochs, data))
        elif missing:
            some = stack.enter_context(workers(count, begin, data))
            for future in [some.submit(train, *block, epochs) for block in missing]:
                keep(future.result())


def _answer(recorded: dict[str, Any], job: Job) -> None:
    from benchmarks.seeds.analysis import analyse  # scipy takes a second to import
    from benchmarks.seeds.report import EXPLANATION, sentences, terminal_tables

    recorded["answers"] = analyse(recorded["runs"])
    for answer in recorded["answers"]:
        for table in terminal_tables(answer, recorded["settings"]):
            job.console.print(table)
        say(job.console, "\n".join(sentences(answer)) + "\n")
    say(job.console, f"{EXPLANATION}\n")


if __name__ == "__main__":
    run(main)
