"""Read files of results, which may come from anywhere, and validate them.

A shape says what a file must hold: for each name a check, or another shape. Whatever else the file
holds is not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.command import LIMITS, CannotRun
from benchmarks.common.record import read_json, write_json

Check = Callable[[Any], bool]
Shape = Mapping[str, Any]  # to checks and shapes


def number(value: Any) -> bool:
    most = {float: 1e100, int: 2**63}.get(type(value), 0)  # what NumPy can hold and draw
    return most > 0 and -most < value < most


def positive(value: Any) -> bool:
    return number(value) and value > 0


def share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


def whole(least: int = 0, most: int = 2**63 - 1) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def within_limits(*names: str) -> Shape:
    """What an option of each name may say."""
    return {name: whole(*LIMITS[name]) for name in names}


def yes_or_no(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    """Printable: no control characters, and none that change the direction of writing."""
    return isinstance(value, str) and len(value) < 5_000 and value.isprintable()


def among(valid: Collection[str]) -> Check:
    return lambda value: isinstance(value, str) and value in valid


def perhaps(check: Check) -> Check:
    return lambda value: value is None or check(value)


def many(check: Check, least: int = 0) -> Check:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(check, value))


def mapping(names: Check, values: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(map(names, value)) and all(map(values, value.values()))
    )


def shaped(shape: Shape) -> Check:
    return lambda value: not any(faults(value, shape))


def columns(names: Collection[str], values: Check, least: int = 0, **own: Check) -> Check:
    """Lists of one length under exactly these names; a column may have its `own` check."""

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == set(names)
            and all(many(own.get(name, values), least)(column) for name, column in value.items())
            and len({len(column) for column in value.values()}) == 1
        )

    return check


def faults(content: Any, shape: Shape, within: str = "") -> Iterator[str]:
    """Describe what is missing or wrong."""
    if not isinstance(content, dict):
        yield f"{within or 'all of it'} is {content!r:.60}"
        return
    for name, check in shape.items():
        path = f"{within}.{name}" if within else name
        if name not in content:
            yield f"it lacks {path}"
        elif isinstance(check, Mapping):
            yield from faults(content[name], check, path)
        elif not check(content[name]):
            yield f"{path} is {content[name]!r:.60}"


def read_results(path: Path, shape: Shape, what: str) -> dict[str, Any]:
    """The content of a file that holds, say, a trial.

    Raises:
        FileNotFoundError: there is no file.
        CannotRun: it is something else; the text says what is wrong.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        raise CannotRun(f"{path} cannot be read: {problem}; remove or replace it") from problem
    if wrong := next(faults(content, shape), None):
        raise CannotRun(f"{path} does not hold {what}: {wrong}; remove or replace it")
    return content


def begin_results(path: Path, begun: dict[str, Any], shape: Shape, resume: bool) -> dict[str, Any]:
    """The content of a job's one file of results: as it is begun, or what it has so far.

    Args:
        begun: what a new job starts with. A job is resumed with the same settings, versions and
            machine alone, so that all of its results are of one kind.
        shape: of the results in it.

    Raises:
        CannotRun: the file holds something else, or another job.
    """
    if not resume:
        write_json(path, begun)
        return begun
    content = read_results(path, {"settings": {}} | dict(shape), "results of this command")
    for name, value in json.loads(json.dumps(begun["settings"])).items():
        if (stored := content["settings"].get(name)) != value:
            raise CannotRun(
                f"{path} has {name} {stored!r:.60}, not {value!r:.60}; repeat the job's options to "
                "resume it, or begin another"
            )
    if any(content.get(name) != begun[name] for name in ("versions", "machine")):
        raise CannotRun(
            f"{path} began with other versions or on another machine; begin another job"
        )
    return begun | {name: content[name] for name in shape}
