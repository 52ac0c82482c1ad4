"""What every command has: its parser, how it begins, is interrupted and ends, progress bars."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.common import claims, signals
from benchmarks.common.data import DataError, Digits, find_data_dir, load_digits

RUNS = Path("runs")
# What can be asked for, and so what a file of results can say that was asked for.
LIMITS = {
    "batch_size": (1, 10**6),
    "depth": (1, 10**4),
    "epochs": (1, 10**5),
    "layers": (1, 10**4),
    "samples": (1, 10**4),
    "seed": (0, 2**63 - 1),
    "seeds": (1, 10**4),
    "stack": (1, 1000),
    "steps": (1, 10**6),
    "test_size": (1, 10**6),
    "train_size": (1, 10**6),
    "validation_size": (1, 10**6),
    "width": (1, 10**4),
    "workers": (0, 1000),
}


class CannotRun(Exception):
    """What was asked for is impossible; the text says why in one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage before it."""
        self.exit(2, f"{self.prog}: error: {in_a_line(message)} (--help lists the options)\n")


class Job:
    """One run of a command, at work.

    Attributes:
        console: where everything is said.
        kept: what is said after an interruption: what there is so far, and how to go on.
        claims: of folders; they end with the job.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.kept = "nothing was begun"
        self.claims = ExitStack()

    def claim(self, out: Path, what: str = "job") -> None:
        """Make the folder of results and keep other commands away from it until this one ends.

        Raises:
            CannotRun: another one is at work there, or it cannot be written.
        """
        try:
            str(out).encode()  # in UTF-8, for files have the name in them
            with signals.held():
                existing = next(path for path in (out, *out.absolute().parents) if path.exists())
                if not existing.is_dir():
                    raise CannotRun(f"--out {out} cannot be written: {existing} is not a directory")
                self.claims.enter_context(claims.claimed(out))
        except claims.Taken:
            raise CannotRun(
                f"another command is at work on the {what} in --out {out}; wait for it, or choose "
                "another directory"
            ) from None
        except (OSError, ValueError) as problem:
            name = Path(str(getattr(problem, "filename", None))).name
            where = f"{claims.LOCK} in it: " if name == claims.LOCK else ""
            raise CannotRun(f"--out {out} cannot be written: {where}{reason(problem)}") from problem


def conduct(parser: Parser, work: Callable[[Job], int], console: Console | None = None) -> int:
    """Do the work of a command, and end as every command ends: the one place that decides it.

    Returns the exit status: what `work` returns, 1 if it could not go on, 130 or 143 after Ctrl-C
    or SIGTERM. What cannot be done as it was asked for is said by the parser, status 2.
    """
    job = Job(console or Console())
    with _quiet_threads(), signals.noted() as heard:
        try:
            with job.claims, heard.as_exceptions():
                return work(job)
        except (KeyboardInterrupt, Exception) as problem:
            # Whatever breaks after a signal is broken by it: a library that cannot be interrupted,
            # a worker that got the signal, too.
            if heard.came or isinstance(problem, KeyboardInterrupt):
                signals.ignore()  # the last words take no time
                _last_words(job, "Interrupted")
                return 128 + (heard.came[0] if heard.came else signal.SIGINT)
            if isinstance(problem, (CannotRun, DataError)):
                parser.error(str(problem))
            if isinstance(problem, OSError) or _is_too_big(problem):
                _last_words(job, f"Cannot go on: {in_a_line(str(problem)) or 'out of memory'}")
                return 1
            _last_words(job, "Stopped by an error")
            raise


def run(main: Callable[[], int]) -> NoReturn:
    """Let a command's `main` be the program that this process is."""
    if sys.stdout is None:  # it was closed before
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    finally:
        signals.ignore()  # what comes now ends by itself
        try:
            sys.stdout.flush()
        except OSError:  # a full disk, or nobody listens: Python would complain at its exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _is_too_big(problem: BaseException) -> bool:
    """Whether memory cannot be had. Of torch's own words for it most are plain RuntimeErrors."""
    return isinstance(problem, (MemoryError, OverflowError, torch.OutOfMemoryError)) or (
        isinstance(problem, RuntimeError)
        and re.search(
            "allocate memory|not enough memory|multiplication overflow|calculation overflowed",
            str(problem),
        )
        is not None
    )


def _last_words(job: Job, what: str) -> None:
    try:
        say(job.console, f"{what}; {job.kept}")
    except OSError:  # standard output is what fails
        with suppress(OSError):
            print(f"{what}; {job.kept}", file=sys.stderr)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """TensorBoard's thread hands its errors to the main thread, and prints them as well."""
    before = threading.excepthook

    def hook(problem: threading.ExceptHookArgs) -> None:
        if not issubclass(problem.exc_type, OSError):
            before(problem)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def reason(problem: OSError | ValueError) -> str:
    """Why, without the name of the file, which the caller says better."""
    return getattr(problem, "strerror", None) or str(problem)


def in_a_line(text: str) -> str:
    """Without line breaks and what moves a terminal's cursor: names and files can hold anything."""
    return _printable(" ".join(text.split()))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Names(argparse.Action):
    """Collect names over repeated options, each once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, list), "argparse collects what nargs='+' allows in a list"
        already = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, list(dict.fromkeys([*already, *values])))


def name_among(valid: Iterable[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in valid:
            raise argparse.ArgumentTypeError(f"no {text!r} here; valid are {', '.join(valid)}")
        return text.lower()

    return parse


def whole_number(name: str) -> Callable[[str], int]:
    """Parse a number within the limits that have this name."""
    least, most = LIMITS[name]

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} up to {most}"
            )
        return number

    return parse


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotRun("--device cuda: torch finds no CUDA device here; choose cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def say(console: Console, text: str) -> None:
    # What a terminal or a pipe cannot show, such as a name that is no text, is shown by its number.
    plain = "\n".join(map(_printable, text.split("\n")))
    shown = plain.encode(console.encoding, "backslashreplace").decode(console.encoding)
    # Without wrapping, so that commands and paths can be copied.
    console.print(shown, markup=False, highlight=False, soft_wrap=True)


def bars(console: Console) -> Progress:
    """Bars on a terminal; elsewhere nothing, for there the lines that are printed suffice."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        refresh_per_second=4,
    )


def load_shown(
    kind: str,
    data_dir: Path | None,
    device: torch.device,
    train_size: int,
    test_size: int,
    console: Console,
) -> Digits:
    """Load digits from a directory that the user named, or else the usual one; show how it goes."""
    data_dir, named = find_data_dir(data_dir)
    with bars(console) as shown:
        generating = shown.add_task("generating digits", visible=False)
        return load_digits(
            kind,
            data_dir,
            device,
            train_size,
            test_size,
            named=named,
            announce=lambda text: say(shown.console, text),
            on_generated=lambda done, total: shown.update(
                generating, completed=done, total=total, visible=True
            ),
        )
