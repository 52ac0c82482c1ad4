"""What is said while a study runs: a bar with the time left, and a line for what is settled."""

from __future__ import annotations

import statistics
import time
from typing import Any

import rich.progress

from benchmarks.common.command import say
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.protocol import Cell, Study, expected, missing, wanted, winner_of
from benchmarks.study.trial import FINAL, SEARCH, Trial


class Progress:
    """Counts trials as they are kept."""

    def __init__(
        self, study: Study, known: dict[str, dict[str, Any]], shown: rich.progress.Progress
    ) -> None:
        self._study, self._known, self._shown = study, known, shown
        self._before, self._began = len(known), time.monotonic()
        self._bar = shown.add_task("trials", total=expected(study, known), completed=len(known))
        if known:
            say(shown.console, f"{len(known)} trials were finished before")

    def left(self) -> int:
        return len(missing(self._study, self._known))

    def kept(self, trial: Trial, content: dict[str, Any]) -> None:
        self._known[trial.key] = content
        total = expected(self._study, self._known)
        self._shown.update(self._bar, completed=len(self._known), total=total)
        settings = trial.settings
        cell = Cell(trial.track, settings.net, settings.optimizer)
        if (news := self._news(cell, trial.phase)) is not None:
            title = f"{settings.net} {OPTIMIZERS[settings.optimizer].title} ({cell.track})"
            place = f"[{len(self._known)}/{total}]"
            say(self._shown.console, f"{place} {title}: {news}; {self._time_left(total)}")

    def _news(self, cell: Cell, phase: str) -> str | None:
        """What the trial settled, if it was the last of its phase."""
        winner = winner_of(self._study, cell, self._known)
        if winner is None:
            return None
        if phase == SEARCH:
            result = self._known[winner.trial.key]["result"]
            edge = ", the end of its grid" if winner.at_edge else ""
            return (
                f"best learning rate {winner.trial.settings.lr:g}{edge}, validation accuracy "
                f"{_percent(result['validation_accuracy'])}"
            )
        finals = [one for one in wanted(self._study, cell, self._known) if one.phase == FINAL]
        if any(one.key not in self._known for one in finals):
            return None
        found = [self._known[one.key]["result"]["test_accuracy"] for one in finals]
        known = [one for one in found if one is not None]
        lost = f", {len(found) - len(known)} diverged" if len(known) < len(found) else ""
        return f"test accuracy {_percent(statistics.fmean(known) if known else None)}{lost}"

    def _time_left(self, total: int) -> str:
        done = len(self._known) - self._before
        seconds = (time.monotonic() - self._began) / done * (total - len(self._known))
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
