"""Tables and pictures of a job, made from the JSON files that its runs left. Nothing is trained.

Any number of finished runs makes a report, so that it can be made again after each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.common.command import CannotRun
from benchmarks.common.data import MNIST_NAME, SYNTHETIC_NAME
from benchmarks.common.implementations import ENGINES
from benchmarks.common.markdown import plain
from benchmarks.common.markdown import table as markdown
from benchmarks.common.nets import ACTIVATIONS
from benchmarks.common.nets import describe as describe_net
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import (
    Shape,
    among,
    columns,
    many,
    mapping,
    number,
    perhaps,
    positive,
    read_results,
    shaped,
    share,
    text,
    whole,
    within_limits,
    yes_or_no,
)
from benchmarks.common.record import RUN_FILE, write_atomically, write_json
from benchmarks.mnist.options import BUDGETS
from benchmarks.mnist.pair import DIRECTORIES, SCRATCH, TORCH

SETTINGS_FILE = "settings.json"
# Of a job on a GPU: the optimizers whose default in torch has other bits than torch's loop there.
TORCHS_DEFAULT = "torchs_default_differs"
RUN_FIELDS = (
    "net", "optimizer", "implementation", "seed", "lr", "epochs",
    "train_loss", "test_loss", "train_accuracy", "test_accuracy", "seconds",
    "optimizer_ms_per_step", "optimizer_share", "diverged", "diverged_at_step", "dataset",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A finished run of ours and, unless it was trained alone, the reference run with torch's."""

    ours: dict[str, Any]
    torchs: dict[str, Any] | None

    @property
    def net(self) -> str:
        return str(self.ours["net"])

    @property
    def optimizer(self) -> str:
        return str(self.ours["optimizer"])

    @property
    def title(self) -> str:
        return OPTIMIZERS[self.optimizer].title


def is_finished(out: Path, net: str, optimizer: str, implementations: tuple[str, ...]) -> bool:
    runs = (out / net / optimizer / DIRECTORIES[name] / RUN_FILE for name in implementations)
    return all(run.exists() for run in runs)


JOB: Shape = {
    "settings": {
        "nets": many(among(ACTIVATIONS), 1),
        "optimizers": many(among(OPTIMIZERS), 1),
        "lr": mapping(among(OPTIMIZERS), positive),
        **within_limits(
            "epochs", "batch_size", "train_size", "test_size", "depth", "width", "seed"
        ),
        "device": among(("cpu", "cuda")),
        **dict.fromkeys(("engine", "torch_engine"), among(ENGINES)),
        "budget": among(BUDGETS),
        **dict.fromkeys(("reference", "capture"), yes_or_no),
        "dataset": among(("mnist", "synthetic")),
    },
    "data_dir": perhaps(text),
    "dataset": among((MNIST_NAME, SYNTHETIC_NAME)),
    "versions": {"torch": text},
    "machine": {"device": text},
}


def read_job(out: Path) -> dict[str, Any]:
    """A job's settings and where it was begun.

    Raises:
        FileNotFoundError: there is none.
        CannotRun: the file holds something else.
    """
    job = read_results(out / SETTINGS_FILE, JOB, "a job")
    settings = job["settings"]
    synthetic = settings["dataset"] == "synthetic", job["dataset"] == SYNTHETIC_NAME
    if (
        synthetic[0] != synthetic[1]
        or any(name not in settings["lr"] for name in settings["optimizers"])
        or not many(among(settings["optimizers"]))(job.get(TORCHS_DEFAULT, []))
    ):
        raise CannotRun(
            f"{out / SETTINGS_FILE} does not hold a job: its settings do not fit together"
        )
    return job


def _read_run(path: Path, settings: dict[str, Any], **same: str) -> dict[str, Any]:
    """The file of a run, which must be the job's."""
    layers = {*(f"layer_{number}" for number in range(1, settings["depth"] + 1)), "output"}
    numbers = perhaps(number)
    return read_results(
        path,
        {
            **{name: among((value,)) for name, value in same.items()},
            **dict.fromkeys(("seed", "train_size", "batch_size", "epochs"), whole()),
            "lr": positive,
            **dict.fromkeys(("train_loss", "test_loss"), numbers),
            **dict.fromkeys(("train_accuracy", "test_accuracy", "optimizer_share"), share),
            **dict.fromkeys(("seconds", "optimizer_ms_per_step"), positive),
            "diverged": yes_or_no,
            "diverged_at_step": perhaps(whole()),
            "dataset": among((MNIST_NAME, SYNTHETIC_NAME)),
            "comparison": perhaps(
                shaped({"max_abs_loss_difference": numbers, "parameters_equal": yes_or_no})
            ),
            "curves": {
                "training": columns(("step", "loss"), numbers, step=whole()),
                "test": columns(
                    ("step", "loss", "accuracy"), numbers, step=whole(), accuracy=share
                ),
                "layers": {"gradient_norm": columns(layers, numbers, 1)},
            },
        },
        "that run of the job",
    )


def load_pairs(out: Path) -> list[Pair]:
    """The finished pairs, in the order in which the job's settings name them."""
    settings = read_job(out)["settings"]
    implementations = (SCRATCH, TORCH) if settings["reference"] else (SCRATCH,)
    pairs = []
    for net in settings["nets"]:
        for optimizer in settings["optimizers"]:
            if is_finished(out, net, optimizer, implementations):
                runs = [
                    _read_run(
                        out / net / optimizer / DIRECTORIES[name] / RUN_FILE,
                        settings,
                        net=net,
                        optimizer=optimizer,
                        implementation=name,
                    )
                    for name in implementations
                ]
                pairs.append(Pair(runs[0], runs[1] if len(runs) > 1 else None))
    return pairs


def write_report(out: Path) -> list[Pair]:
    """Write summary.json, summary.md, curves.png and gradient_flow.png into the job's directory."""
    from benchmarks.mnist import figures  # matplotlib takes a second to import

    job = read_job(out)
    pairs = load_pairs(out)
    write_json(out / "summary.json", _summary(job, pairs))
    if pairs:
        write_atomically(out / "summary.md", _markdown(job, pairs))
        dataset, ours = job["dataset"], [pair.ours for pair in pairs]
        theirs = [pair.torchs for pair in pairs if pair.torchs is not None]
        write_atomically(out / "curves.png", figures.draw_curves(dataset, ours, theirs))
        write_atomically(out / "gradient_flow.png", figures.draw_gradient_flow(dataset, ours))
    return pairs


def _summary(job: dict[str, Any], pairs: list[Pair]) -> dict[str, Any]:
    runs = [run for pair in pairs for run in (pair.ours, pair.torchs) if run is not None]
    settings = {name: value for name, value in job.items() if name != "data_dir"}
    return settings | {
        "runs": [{name: run[name] for name in RUN_FIELDS} for run in runs],
        "comparisons": [
            {"net": pair.net, "optimizer": pair.optimizer, **pair.ours["comparison"]}
            for pair in pairs
            if pair.ours["comparison"] is not None
        ],
    }


HEADINGS = (
    ("optimizer", ""),
    ("lr", ""),
    ("train", "loss"),
    ("test", "loss"),
    ("train", "acc %"),
    ("test", "acc %"),
    ("ours", "ms"),
    ("torch", "ms"),
    ("ours/", "torch"),
    ("step", "share"),
    ("differs", "from torch by"),
)
EXPLANATION = (
    "ms: the median time of an optimizer step. Step share: how much of our training time the "
    "steps of our optimizer take. Differs from torch by: the largest difference between our loss "
    "and torch's over all steps, and whether the final parameters are equal."
)


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.1e}"


def _cells(pair: Pair) -> list[str]:
    run = pair.ours
    if run["diverged"]:
        results = ["diverged", f"step {run['diverged_at_step']}", "-", "-"]
    else:
        results = [_loss(run["train_loss"]), _loss(run["test_loss"])]
        results += [f"{100 * run['train_accuracy']:.2f}", f"{100 * run['test_accuracy']:.2f}"]
    step = run["optimizer_ms_per_step"]
    if pair.torchs is None:
        times = [f"{step:.2f}", "-", "-"]
    else:
        reference = pair.torchs["optimizer_ms_per_step"]
        times = [f"{step:.2f}", f"{reference:.2f}", f"{step / reference:.2f}"]
    share = f"{100 * run['optimizer_share']:.0f} %"
    return [
        pair.title,
        f"{run['lr']:g}",
        *results,
        *times,
        share,
        describe(pair.ours["comparison"]),
    ]


def describe(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return "-"
    difference = comparison["max_abs_loss_difference"]
    # JSON has no NaN: null says that one of the two diverged and the other did not.
    number = "NaN" if difference is None else "0" if difference == 0 else f"{difference:.1e}"
    return f"{number}, {'equal' if comparison['parameters_equal'] else 'unequal'}"


def describe_torchs_default(job: dict[str, Any]) -> str | None:
    """A sentence on whether torch's default has the bits of torch's loop, if that was measured."""
    differing = job.get(TORCHS_DEFAULT)
    if differing is None:
        return None
    if not differing:
        return "torch's default has the bits of torch's own loop on this device."
    titles = ", ".join(OPTIMIZERS[name].title for name in differing)
    return f"torch's default differs from torch's own loop on this device: {titles}."


def terminal_tables(job: dict[str, Any], pairs: list[Pair]) -> list[Table]:
    """One table per net: narrow enough for a terminal of 80 columns."""
    settings = job["settings"]
    tables = []
    for net in settings["nets"]:
        title = f"{job['dataset']}: {describe_net(net, settings['depth'], settings['width'])}"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, title_style="bold")
        for column, (first, second) in enumerate(HEADINGS):
            table.add_column(
                f"{first}\n{second}", justify="left" if column == 0 else "right", no_wrap=True
            )
        for pair in pairs:
            if pair.net == net:
                table.add_row(*_cells(pair))
        if table.row_count:
            tables.append(table)
    return tables


def markdown_table(pairs: list[Pair]) -> str:
    headings = ["net", *(" ".join(filter(None, heading)) for heading in HEADINGS)]
    return markdown([headings, *([pair.net, *_cells(pair)] for pair in pairs)])


def _markdown(job: dict[str, Any], pairs: list[Pair]) -> str:
    settings = job["settings"]
    device, torch = plain(job["machine"]["device"]), plain(job["versions"]["torch"])
    lines = [
        f"# {job['dataset']}",
        "",
        f"Epochs: {settings['epochs']}. Batch: {settings['batch_size']}. "
        f"Seed: {settings['seed']}. Hidden layers: {settings['depth']} of {settings['width']} "
        f"units. Device: {device}. torch: {torch}.",
        "",
        markdown_table(pairs),
    ]
    if sentence := describe_torchs_default(job):
        lines += ["", sentence]
    lines += ["", f"Data: {job['dataset']}. {EXPLANATION}", ""]
    lines += ["![Training loss and test accuracy](curves.png)", ""]
    lines += ["![Gradient norm per layer](gradient_flow.png)", ""]
    return "\n".join(lines)
