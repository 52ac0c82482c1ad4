"""What every command needs: its parser, checks before the start, progress bars, its end."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.data import Digits, load_digits

RUNS = Path("runs")


class CannotRun(Exception):
    """What was asked for is impossible; the text says why in one line."""


class Terminated(KeyboardInterrupt):
    """The program was asked to end by a signal; it leaves in the same way as with Ctrl-C."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage before it."""
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


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


def whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return number

    return parse


def check_writable(out: Path) -> None:
    """Try before anything costs time; nothing stays behind."""
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise CannotRun(f"--out {out} cannot be written: {existing} is not a directory")
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            pass
    except OSError as reason:
        problem = f"{existing}: {reason.strerror}"
        raise CannotRun(f"--out {out} cannot be written: {problem}") from reason


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """The first file in `out` is written here: what goes wrong is the fault of --out."""
    try:
        yield
    except OSError as problem:
        raise CannotRun(f"--out {out} cannot be written: {problem.strerror}") from problem


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotRun("--device cuda: torch finds no CUDA device here; choose cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def say(console: Console, text: str) -> None:
    # Without wrapping, so that commands and paths can be copied.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
    data_dir: Path,
    device: torch.device,
    train_size: int,
    test_size: int,
    console: Console,
) -> Digits:
    """Load digits and show how it goes."""
    with bars(console) as shown:
        drawing = shown.add_task("drawing digits", visible=False)
        return load_digits(
            kind,
            data_dir,
            device,
            train_size,
            test_size,
            announce=lambda text: say(shown.console, text),
            on_drawn=lambda done, total: shown.update(
                drawing, completed=done, total=total, visible=True
            ),
        )


@contextmanager
def termination_raises() -> Iterator[None]:
    """Let SIGTERM take the same way out as Ctrl-C."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status(interruption: KeyboardInterrupt) -> int:
    number = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
    return 128 + number
