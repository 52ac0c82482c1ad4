"""From a results folder to report.html, report.md, its figures and summary.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.command import CannotRun
from benchmarks.data import DRAWN_NAME, MNIST_NAME
from benchmarks.optimizers import CONTENDERS
from benchmarks.record import provenance, read_json, write_atomically, write_json
from benchmarks.study.analysis import SAME, Trial, analyse, without_curves
from benchmarks.study.report.drawing import svg_file
from benchmarks.study.report.figures import DRAWINGS
from benchmarks.study.report.page import page
from benchmarks.study.report.paper import paper
from benchmarks.study.report.texts import sections

STUDY, TRIALS, PUBLISHED = "study.json", "trials", "published.json"
PAGE, PAPER, SUMMARY, FIGURES = "report.html", "report.md", "summary.json", "figures"
DATA = {"mnist": MNIST_NAME, "drawn": DRAWN_NAME}


def write(out: Path) -> None:
    """Write the report into the study's own folder, each file at once or not at all.

    Args:
        out: a results folder: study.json, trials/*.json and, if there is one, published.json.

    Raises:
        CannotRun: there is no study in it, or a file is not what a study writes.
    """
    study = _read(out / STUDY)
    trials = load_trials(out, study)
    published = _read(out / PUBLISHED)["cases"] if (out / PUBLISHED).exists() else []
    facts = analyse(trials)
    about = _about(study, facts)
    figures = {
        f"{number}_{arena['net']}_{arena['track']}": {
            name: DRAWINGS[name](arena) for section in sections(arena) for name in section.figures
        }
        for number, arena in enumerate(facts["arenas"], 1)
    }
    write_json(out / SUMMARY, study | about | without_curves(facts))
    for arena, drawn in figures.items():
        for name, figure in drawn.items():
            write_atomically(out / FIGURES / f"{arena}_{name}.svg", svg_file(figure))
    write_atomically(out / PAPER, paper(about, facts, figures, published, trials))
    write_atomically(out / PAGE, page(about, facts, figures, published, trials))


def load_trials(out: Path, study: dict[str, Any]) -> list[Trial]:
    trials = []
    for path in sorted((out / TRIALS).glob("*.json")):
        trial = _read(path)
        if trial.get("protocol") != study.get("protocol"):
            raise CannotRun(
                f"{path} is of protocol {trial.get('protocol')}, {out / STUDY} of "
                f"{study.get('protocol')}: two studies in one folder"
            )
        _check(path, trial)
        trials.append(trial)
    return trials


def _check(path: Path, trial: Trial) -> None:
    """Say which file is wrong before something fails far from it."""
    settings, result = trial.get("settings", {}), trial.get("result", {})
    missing = [name for name in ("phase", "track", "settings", "result") if name not in trial]
    missing += [name for name in (*SAME, "optimizer", "lr", "options", "seed")
                if name not in settings]  # fmt: skip
    missing += [name for name in ("diverged", "targets", "curves", "gradient_norms")
                if name not in result]  # fmt: skip
    if missing:
        raise CannotRun(f"{path} is not a trial: it lacks {', '.join(missing)}")
    if settings["optimizer"] not in CONTENDERS:
        raise CannotRun(f"{path}: no optimizer {settings['optimizer']!r} here")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise CannotRun(f"{path} is not there: {path.parent} holds no study") from None
    except ValueError as problem:  # of the JSON, of its encoding, or of what it holds
        raise CannotRun(f"{path} cannot be read: {problem}") from problem


def _about(study: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    command = study.get("command") or (
        f"python -m benchmarks.study --budget {study['settings']['budget']}"
    )
    used = list(dict.fromkeys(arena["dataset"] for arena in facts["arenas"]))
    return {
        "dataset": ", ".join(DATA[name] for name in used) or "no data yet",
        "command": command,
        "provenance": provenance(study, command),
    }
