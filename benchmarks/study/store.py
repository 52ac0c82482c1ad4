"""The folder of a study: its settings, and a file for each finished trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.claims import LOCK
from benchmarks.common.command import CannotRun
from benchmarks.common.reading import Shape, among, faults, read_results, whole
from benchmarks.common.record import RunRecorder, conditions, write_json
from benchmarks.study.files import DATASETS, STUDY_FILE, TRIALS, read_trial
from benchmarks.study.protocol import Study, winner_of
from benchmarks.study.trial import FINAL, PROTOCOL, Trial, key_of

RUNS = "runs"  # of TensorBoard
BEGUN: Shape = {"settings": {"dataset": among(DATASETS)}, "machine": {}, "versions": {}}
FINAL_TAGS = ("accuracy/test", "accuracy/validation", "loss/test", "loss/validation", "loss/train")


class Store:
    """The files of a study. A trial without a file is not finished.

    Args:
        out: the folder; it may be new, or hold a part of this study.

    Raises:
        CannotRun: the folder holds something else, another study, or another protocol's.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        try:
            self.content: dict[str, Any] | None = read_results(
                out / STUDY_FILE, {"protocol": whole()}, "a study"
            )
        except FileNotFoundError:
            self.content = None
        in_use = out.is_dir() and any(path.name != LOCK for path in out.iterdir())
        if self.content is None and in_use:
            raise CannotRun(f"--out {out} is not empty and holds no study; choose another")
        if self.content is not None and self.content.get("protocol") != PROTOCOL:
            raise CannotRun(
                f"--out {out} holds a study by protocol {self.content.get('protocol')}, whose "
                f"trials cannot be mixed with those of {PROTOCOL}; choose another directory"
            )
        if self.content and (wrong := next(faults(self.content, BEGUN), None)):
            raise CannotRun(f"{out / STUDY_FILE} does not hold a study: {wrong}; choose another")

    def check(self, study: Study) -> None:
        """Refuse to go on with another study.

        "auto" stands for the data set that the folder has.
        """
        if self.content is None:
            return
        kept = self.content["settings"]
        for name, value in _plain(study).items():
            if value not in (kept.get(name), "auto"):
                raise CannotRun(
                    f"--out {self.out} holds a study with {name} {kept.get(name)}, not {value}; "
                    "repeat its options to go on with it, or choose another directory"
                )

    @property
    def dataset(self) -> str | None:
        return None if self.content is None else str(self.content["settings"]["dataset"])

    def begin(
        self, study: Study, device: torch.device, how: Mapping[str, Any], command: str = ""
    ) -> bool:
        """Write the study's file; False if it began on another machine or with other versions."""
        now = conditions(device, command)
        if self.content is not None:
            return all(self.content[name] == now[name] for name in ("versions", "machine"))
        self.content = {"protocol": PROTOCOL, "settings": _plain(study), "running": how} | now
        write_json(self.out / STUDY_FILE, self.content)
        return True

    def trials(self) -> dict[str, dict[str, Any]]:
        """The finished trials, by key."""
        trials = {}
        for path in sorted((self.out / TRIALS).glob("*.json")):
            trials[path.stem] = read_trial(path)
            if key_of(trials[path.stem]) != path.stem:
                raise CannotRun(f"{path} holds another trial than its name says; remove it")
        return trials

    def keep(self, trial: Trial, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a trial's file and, of a final, the curves for TensorBoard."""
        content = trial.content() | {"result": result}
        if trial.phase == FINAL:
            self._record(trial, content)
        path = self.out / TRIALS / f"{trial.key}.json"
        write_json(path, content)
        return read_trial(path)  # as it will be read later: NaN is null

    def keep_winners(self, study: Study, known: Mapping[str, Mapping[str, Any]]) -> None:
        """Add to the study's file the winner of each sweep, and how far its grid was extended."""
        assert self.content is not None, "the study has begun"
        winners = [(sweep, winner_of(study, sweep, known)) for sweep in study.sweeps()]
        self.content["winners"] = [
            vars(sweep)
            | {"key": winner.trial.key, "lr": winner.trial.settings.lr}
            | {"options": winner.trial.settings.options}
            | {"extra": winner.extra, "at_edge": winner.at_edge}
            for sweep, winner in winners
            if winner is not None
        ]
        write_json(self.out / STUDY_FILE, self.content)

    def _record(self, trial: Trial, content: Mapping[str, Any]) -> None:
        settings, result = trial.settings, content["result"]
        name = Path(trial.search_space, settings.net, settings.optimizer, f"seed_{settings.seed}")
        recorder = RunRecorder(self.out / RUNS / name)
        try:
            curves = dict(result["curves"])
            steps = curves.pop("step")
            for curve, values in curves.items():
                part, _, measure = curve.partition("_")
                for step, value in zip(steps, values, strict=True):
                    if value is not None:  # NaN in the file of the other search space's trial
                        recorder.scalar(f"{measure or 'time'}/{part}", value, step)
            norms = dict(result["gradient_norms"])
            for step, *values in zip(norms.pop("step", []), *norms.values(), strict=True):
                for layer, value in zip(norms, values, strict=True):
                    if value is not None:
                        recorder.scalar(f"gradient_norm/{layer}", value, step)
            plain = asdict(settings)
            hyper = plain.pop("options") | plain | {"search_space": trial.search_space}
            recorder.finish(hyper, FINAL_TAGS, content)
        except BaseException:
            recorder.abandon()
            raise


def _plain(study: Study) -> dict[str, Any]:
    """A study's settings as JSON gives them back."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(study).items()
    }
