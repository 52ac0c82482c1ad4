"""The skeleton of every command: parser, start, interruption, end, progress bars."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from rich.console import Console

from benchmarks.common import claims, signals
from benchmarks.common.data import SYNTHETIC_NAME, DataError, Digits, find_data_dir, load_digits
from benchmarks.common.record import publish

if TYPE_CHECKING:
    from rich.progress import Progress

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
    """What was asked for is impossible; the message says why in one line."""


class Parser(argparse.ArgumentParser):
    """Refuses in one line what it cannot read, and suggests what may have been meant."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(
            prog=prog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options of a command line; `command` and `again` say how to repeat it.

        Attributes of the result besides the options:
            command: the line without the options that only say where files lie. It is recorded.
            again: the same with the data's directory, to which `--resume --out` can be added.
        """
        words = list(sys.argv[1:] if arguments is None else arguments)
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in (*self._option_string_actions, "--"):
                hint = did_you_mean(name, self._option_string_actions)
                self.error(f"there is no option {name}{hint}")
        given = self.parse_args(words)
        given.command = self._line(words, {*OF_FILES, *OF_THE_OUTPUT})
        given.again = self._line(words, OF_THE_OUTPUT)
        return given

    def _line(self, words: Sequence[str], without: Collection[str]) -> str:
        kept, rest = [], iter(words)
        for word in rest:
            name, equals, _ = word.partition("=")
            if name not in without:
                kept.append(word)
            elif not equals and self._option_string_actions[name].nargs != 0:
                next(rest)
        return " ".join([self.prog, shlex.join(kept)]).strip()

    def error(self, message: str) -> NoReturn:
        """One line, without the usage before it."""
        self.exit(2, f"{self.prog}: error: {in_a_line(message)} (--help lists the options)\n")


OF_THE_OUTPUT = ("--out", "--resume")
OF_FILES = ("--data-dir", "--record")


def did_you_mean(text: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(text, valid, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Job:
    """One run of a command.

    Attributes:
        given: the options of the command line.
        name: of the command, such as mnist.
        console: where everything is printed.
        kept: what is printed after an interruption: what there is so far, and how to resume.
        claims: of folders; they end with the job.
    """

    def __init__(self, given: argparse.Namespace, console: Console) -> None:
        self.given = given
        self.name = given.command.split()[2].rpartition(".")[2]
        self.console = console
        self.kept = "nothing was begun"
        self.claims = ExitStack()

    def begin(self, marker: str) -> Path:
        """Claim the folder of results: a new or empty one or, with --resume, one with this job.

        Args:
            marker: a file in which such a job is known, or a pattern of such files.

        Raises:
            CannotRun: the folder cannot be used so.
        """
        given = self.given
        self.check_budget(vars(given).get("budget"))
        out: Path = given.out or (
            newest_job(marker) if given.resume else RUNS / f"{self.name}_{now()}"
        )
        self.claim(out)
        is_begun = any(out.glob(marker))
        if given.resume and not is_begun:
            raise CannotRun(f"there is no job to resume in {out}: no {marker}")
        if not given.resume and any(path.name != claims.LOCK for path in out.iterdir()):
            hint = "; with --resume it goes on" if is_begun else ""
            raise CannotRun(f"--out {out} is not empty; choose another directory{hint}")
        return out

    def check_budget(self, budget: str | None) -> None:
        """
        Raises:
            CannotRun: the results were to be recorded, and the budget is too small for that.
        """
        if self.given.record and budget == "quick":
            raise CannotRun("--record takes no results of --budget quick")

    def keep(self, out: Path, what: str) -> None:
        """From now on an interruption keeps `what` and says how to resume; say where it is."""
        command = f"{self.given.again} --resume --out {shlex.quote(str(out))}"
        self.kept = f"{what} are kept. Resume with:\n\n    {command}\n"
        say(self.console, f"Results go to {out}")

    def end(self, out: Path, first: str, *, recorded: Sequence[str], tensorboard: str = "") -> None:
        """Record the results if asked to, and say which file to open next.

        Args:
            first: the file in `out` to begin with.
            recorded: the files that --record copies, as patterns.
            tensorboard: the folder in `out` that has events, "." for all of it.
        """
        if self.given.record:
            say(self.console, f"Recorded in {publish(self.name, out, recorded)}")
        lines = [shlex.quote(str(out / first))]
        if tensorboard:
            lines.append(f"tensorboard --logdir {shlex.quote(str(out / tensorboard))}")
        say(self.console, "\n    ".join(["Next, open:\n", *lines]) + "\n")

    def load_digits(
        self, kind: str, data_dir: Path | None, device: torch.device, train: int, test: int
    ) -> Digits:
        """Load digits from a directory that the user named, or else the usual one.

        Raises:
            CannotRun: they are not MNIST, and the results were to be recorded.
            DataError: there are none.
        """
        data_dir, named = find_data_dir(data_dir)
        with bars(self.console) as shown:
            bar = shown.add_task("generating digits", visible=False)
            digits = load_digits(
                kind,
                data_dir,
                device,
                train,
                test,
                named=named,
                announce=lambda text: say(shown.console, text),
                on_generated=lambda done, total: shown.update(
                    bar, completed=done, total=total, visible=True
                ),
            )
        if self.given.record and digits.name == SYNTHETIC_NAME:
            raise CannotRun(f"--record takes no results of {SYNTHETIC_NAME}")
        return digits

    def claim(self, out: Path) -> None:
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
                f"another command is at work in --out {out}; wait for it, or choose another "
                "directory"
            ) from None
        except (OSError, ValueError) as problem:
            name = Path(str(getattr(problem, "filename", None))).name
            where = f"{claims.LOCK} in it: " if name == claims.LOCK else ""
            raise CannotRun(f"--out {out} cannot be written: {where}{reason(problem)}") from problem


def now() -> str:
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}"


def newest_job(marker: str) -> Path:
    """The folder in `runs` in which a job of this kind was last at work."""
    found = [path for path in RUNS.glob("*") if any(path.glob(marker))]
    if not found:
        raise CannotRun(f"there is no job to resume in {RUNS}; name one with --out DIR")
    return max(found, key=lambda out: max(path.stat().st_mtime for path in out.glob(marker)))


def conduct(
    parser: Parser,
    arguments: Sequence[str] | None,
    work: Callable[[argparse.Namespace, Job], int],
    console: Console | None = None,
) -> int:
    """Do the work of a command, and end as every command ends: the one place that decides it.

    Returns the exit status: what `work` returns, 1 if it could not go on, 130 or 143 after Ctrl-C
    or SIGTERM. What cannot be done as it was asked for is said by the parser, status 2.
    """
    given = parser.read(arguments)
    job = Job(given, console or Console())
    with _quiet_threads(), signals.noted() as heard:
        try:
            with job.claims, heard.as_exceptions():
                return work(given, job)
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
    """Whether memory ran out. Most of torch's errors for that are plain RuntimeErrors."""
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
    """TensorBoard's thread passes its errors to the main thread; it need not print them, too."""
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
    """Why it failed, without the name of the file, which the caller adds."""
    return getattr(problem, "strerror", None) or str(problem)


def in_a_line(text: str) -> str:
    """Without line breaks and control characters: names and files can hold anything."""
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


def name_among(valid: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in valid:
            names = ", ".join(valid) + did_you_mean(text.lower(), valid)
            raise argparse.ArgumentTypeError(f"no {text!r} here; valid are {names}")
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
    """Progress bars on a terminal; elsewhere none, because the printed lines suffice."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.percentage:>3.0f} %"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        refresh_per_second=4,
    )
