"""Progress of a study: a bar with the time left, and a line for each result."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.common.command import say
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.protocol import Study, Sweep, expected, missing, wanted, winner_of
from benchmarks.study.trial import FINAL, SELECTION, TIMING, Trial, accuracy_of, has_failed

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """Counts trials as they are kept."""

    def __init__(
        self, study: Study, known: dict[str, dict[str, Any]], shown: rich.progress.Progress
    ) -> None:
        self._study, self._known, self._shown = study, known, shown
        self._before, self._began = len(known), time.monotonic()
        self._bar = shown.add_task("trials", total=expected(study, known), completed=len(known))
        if known:
            say(shown.console, f"{len(known)} trials are already finished")

    def left(self) -> int:
        return len(missing(self._study, self._known))

    def kept(self, trial: Trial, content: dict[str, Any]) -> None:
        self._known[trial.key] = content
        total = expected(self._study, self._known)
        self._shown.update(self._bar, completed=len(self._known), total=total)
        settings = trial.settings
        sweep = Sweep(trial.search_space, settings.net, settings.optimizer)
        if (news := self._news(sweep, trial.phase)) is not None:
            title = f"{settings.net} {OPTIMIZERS[settings.optimizer].title} ({sweep.search_space})"
            count = f"[{len(self._known)}/{total}]"
            say(self._shown.console, f"{count} {title}: {news}; {self._time_left(total)}")

    def _news(self, sweep: Sweep, phase: str) -> str | None:
        """The result of a sweep's choice or comparison, if the trial was the last one of it."""
        winner = winner_of(self._study, sweep, self._known)
        if winner is None or phase == TIMING:
            return None
        trials = list(wanted(self._study, sweep, self._known))
        if phase != FINAL:
            result = self._known[winner.trial.key]["result"]
            edge = ", at the end of its grid" if winner.at_edge else ""
            accuracy = _percent(accuracy_of(result, "validation"))
            of_selection = sum(trial.phase == SELECTION for trial in trials)
            chosen = f"chosen by {of_selection} more trials" if of_selection else "one candidate"
            return (
                f"learning rate {winner.trial.settings.lr:g}{edge}, validation accuracy "
                f"{accuracy} in the search, {chosen}"
            )
        finals = [trial for trial in trials if trial.phase == FINAL]
        if any(trial.key not in self._known for trial in finals):
            return None
        accuracies = [accuracy_of(self._known[trial.key]["result"], "test") for trial in finals]
        failures = sum(map(has_failed, accuracies))
        failed = f", {failures} failed" if failures else ""
        return f"test accuracy {_percent(statistics.fmean(accuracies))}{failed}"

    def _time_left(self, total: int) -> str:
        done = len(self._known) - self._before
        seconds = (time.monotonic() - self._began) / done * (total - len(self._known))
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
