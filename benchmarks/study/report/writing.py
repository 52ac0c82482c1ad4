"""From a results folder to report.html, report.md, its figures and summary.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.common.command import CannotRun
from benchmarks.common.data import MNIST_NAME, SYNTHETIC_NAME
from benchmarks.common.markdown import plain
from benchmarks.common.reading import Shape, among, read_results, text, whole
from benchmarks.common.record import provenance, write_atomically, write_json
from benchmarks.study.analysis import Trial, analyse, without_curves
from benchmarks.study.files import STUDY_FILE, TRIALS, read_trial
from benchmarks.study.protocol import BUDGETS
from benchmarks.study.report.drawing import svg_file
from benchmarks.study.report.figures import DRAWINGS
from benchmarks.study.report.page import page
from benchmarks.study.report.paper import paper
from benchmarks.study.report.texts import sections

PAGE, PAPER, SUMMARY, FIGURES = "report.html", "report.md", "summary.json", "figures"
# What ends no code span in Markdown and is no HTML.
COMMAND = re.compile(r"python -m benchmarks\.study[^`<>&|\[\]\\\r\n]*")
DATA = {"mnist": MNIST_NAME, "synthetic": SYNTHETIC_NAME}
STUDY: Shape = {
    "protocol": whole(),
    "settings": {"budget": among(BUDGETS)},
    "machine": {"device": text, "processor": text, "torch_threads": whole()},
    "versions": {"torch": text, "python": text},
}


def write(out: Path) -> dict[str, Any]:
    """Write the report into the study's folder, each file completely or not at all.

    Args:
        out: a results folder: study.json and trials/*.json.

    Returns:
        What the report says, as `analyse` returns it.

    Raises:
        CannotRun: there is no study in it, or a file is not what a study writes.
    """
    try:
        study = read_results(out / STUDY_FILE, STUDY, "a study")
    except FileNotFoundError:
        raise CannotRun(f"{out / STUDY_FILE} is not there: {out} holds no study") from None
    trials = load_trials(out, study)
    facts = analyse(trials)
    about = _about(study, facts)
    figures = {
        f"{number}_{comparison['net']}_{comparison['search_space']}": {
            name: DRAWINGS[name](comparison)
            for section in sections(comparison)
            for name in section.figures
        }
        for number, comparison in enumerate(facts["comparisons"], 1)
    }
    write_json(out / SUMMARY, study | about | without_curves(facts))
    for key, drawn in figures.items():
        for name, figure in drawn.items():
            write_atomically(out / FIGURES / f"{key}_{name}.svg", svg_file(figure))
    written = _about(_as_markdown(study), facts)
    write_atomically(out / PAPER, paper(written, facts, figures, trials))
    write_atomically(out / PAGE, page(about, facts, figures, trials))
    return facts


def load_trials(out: Path, study: dict[str, Any]) -> list[Trial]:
    trials = []
    for path in sorted((out / TRIALS).glob("*.json")):
        trial = read_trial(path)
        if trial["protocol"] != study["protocol"]:
            raise CannotRun(
                f"{path} is of protocol {trial['protocol']}, {out / STUDY_FILE} of "
                f"{study['protocol']}: two studies in one folder"
            )
        trials.append(trial)
    return trials


def _about(study: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    command = str(study.get("command"))
    if not COMMAND.fullmatch(command):  # from elsewhere, it might be markup
        command = f"python -m benchmarks.study --budget {study['settings']['budget']}"
    used = list(dict.fromkeys(comparison["dataset"] for comparison in facts["comparisons"]))
    return {
        "dataset": ", ".join(DATA[name] for name in used) or "no data yet",
        "command": command,
        "provenance": provenance(study, command),
    }


def _as_markdown(study: dict[str, Any]) -> dict[str, Any]:
    parts = {
        part: {name: plain(str(value)) for name, value in study[part].items()}
        for part in ("machine", "versions")
    }
    return study | parts
