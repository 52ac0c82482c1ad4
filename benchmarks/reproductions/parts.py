"""What a case has finished so far: after an interruption those parts are not run again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import claims
from benchmarks.common.command import CannotRun
from benchmarks.common.record import read_json, write_json

FOLDER = "parts"  # beside reproductions.json; empty, and gone, when all cases have ended

Part = TypeVar("Part")  # lists, dicts, numbers: what JSON can hold


class Parts:
    """Finished parts of one case, in a file that is written after each.

    Parts that were run with other settings are forgotten.
    """

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any]) -> None:
        self._path = out / FOLDER / f"{name}.json"
        self._settings = settings
        self._parts = self._read()
        self.are_resumed = bool(self._parts)  # from an earlier run, or from anywhere

    def once(self, key: str, compute: Callable[[], Part]) -> Part:
        """What `compute` returns, or returned before under this key."""
        if key not in self._parts:
            self._parts[key] = compute()
            write_json(self._path, {"settings": self._settings, "parts": self._parts})
        part: Part = self._parts[key]
        return part

    def remove(self) -> None:
        claims.check(self._path)
        self._path.unlink(missing_ok=True)
        if self._path.parent.exists() and not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()

    def _read(self) -> dict[str, Any]:
        try:
            content = read_json(self._path)
            same = content["settings"] == self._settings
            return {key: _numbers(part) for key, part in content["parts"].items()} if same else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, AttributeError) as problem:
            raise self.damaged(problem) from problem

    def damaged(self, problem: Exception) -> CannotRun:
        return CannotRun(f"{self._path} is damaged, remove it: {problem!r}")


def _numbers(part: Any) -> Any:
    """JSON has null for NaN and infinities; as a figure, all of them reach nothing."""
    if isinstance(part, Mapping):
        return {key: _numbers(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_numbers(value) for value in part]
    return math.nan if part is None else part
