"""Run cases one after another; what is finished is kept in reproductions.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import CannotRun, in_a_line
from benchmarks.common.data import DataError, Digits, find_data_dir, load_digits
from benchmarks.common.reading import (
    Shape,
    among,
    many,
    number,
    perhaps,
    read_results,
    shaped,
    text,
)
from benchmarks.common.record import conditions, write_json
from benchmarks.reproductions.case import BUDGETS, DIFFERS, NOT_RUN, REPRODUCED, Case, Lab
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.parts import Parts
from benchmarks.reproductions.table import CaseResult

RESULT = "reproductions.json"
CPU = torch.device("cpu")

OnProgress = Callable[[str, float], None]  # a case's name, and the share of it that is done


def run_cases(
    names: Sequence[str],
    out: Path,
    data_dir: Path | None = None,
    on_progress: OnProgress = lambda name, share: None,
    *,
    budget: str = "standard",
    device: torch.device = CPU,
    cases: Mapping[str, Case] | None = None,
    digits: Digits | None = None,
    command: str = "",
) -> list[CaseResult]:
    """Run cases and keep them in `out`/reproductions.json, which is written after each.

    A case that is there already, run with the same settings or by a larger budget, is not run
    again. Without MNIST nothing is run, and the rows say so: no figure here is of other data.

    Args:
        names: of cases, any of `CASES`; each is run once.
        out: a folder; whatever else is in its reproductions.json stays.
        data_dir: where MNIST is, or is to be downloaded to (default: as everywhere).
        on_progress: is told a case's name and the share of it that is done, 0 … 1.
        cases: what to take in the place of `CASES`.
        digits: MNIST, if it is loaded already.
        command: the command line, which is written down.

    Returns:
        The cases that were named, as reproductions.json has them.

    Raises:
        CannotRun: no such case or budget, or reproductions.json is not one.
    """
    cases = CASES if cases is None else cases
    _check(names, budget, cases)
    kept = {found["case"]: found for found in read_cases(out)}
    chosen = list(dict.fromkeys(names))
    todo = [name for name in chosen if not _is_kept(kept.get(name), cases[name], budget)]
    reason = f"the budget {budget} does not reach it"
    if todo and digits is None:
        try:
            digits = load_mnist(data_dir, device)
        except DataError as problem:
            reason = in_a_line(str(problem))
    for name in todo:
        settings = settings_of(cases[name], budget, None if digits is None else digits.name)
        parts = Parts(out, name, settings)
        kept[name] = _run(name, cases[name], digits, settings, parts, reason, on_progress)
        _write(out, kept, device, command)
        parts.remove()
        on_progress(name, 1.0)
    return [kept[name] for name in chosen]


def load_mnist(
    data_dir: Path | None, device: torch.device, announce: Callable[[str], None] = lambda text: None
) -> Digits:
    """MNIST, and nothing in its place."""
    try:
        directory, named = find_data_dir(data_dir)
        return load_digits("mnist", directory, device, named=named, announce=announce)
    except DataError as problem:
        # There is no such choice here.
        raise DataError(str(problem).removesuffix(", or choose --dataset synthetic")) from problem


def _check(names: Sequence[str], budget: str, cases: Mapping[str, Case]) -> None:
    if unknown := [name for name in names if name not in cases]:
        raise CannotRun(f"no case {unknown[0]!r}; there are {', '.join(cases)}")
    if budget not in BUDGETS:
        raise CannotRun(f"no budget {budget!r}; there are {', '.join(BUDGETS)}")


ROW: Shape = {
    **dict.fromkeys(("quantity", "tolerance", "note"), text),
    "verdict": among((REPRODUCED, DIFFERS, NOT_RUN)),
    "theirs": lambda value: number(value) or many(number, 2)(value),
    "ours": perhaps(number),
}
CASE: Shape = {
    **dict.fromkeys(("case", "title", "source"), text),
    "rows": many(shaped(ROW), 1),
    "seconds": number,
    "settings": {"budget": among(BUDGETS), "dataset": perhaps(text)},
}


def read_cases(out: Path) -> list[CaseResult]:
    """The cases that are in reproductions.json; none, if there is no such file.

    Raises:
        CannotRun: the file holds something else.
    """
    path = out / RESULT
    try:
        content = read_results(path, {"cases": many(shaped(CASE))}, "reproduced cases")
    except FileNotFoundError:
        return []
    cases: list[CaseResult] = content["cases"]
    return cases


def _write(out: Path, kept: Mapping[str, CaseResult], device: torch.device, command: str) -> None:
    write_json(out / RESULT, conditions(device, command) | {"cases": list(kept.values())})


def settings_of(case: Case, budget: str, dataset: str | None) -> dict[str, Any]:
    """What decides a case's figures, as JSON has it."""
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in case.budgets.get(budget, {}).items()
    }
    return {"budget": budget, "dataset": dataset, **settings}


def _is_kept(found: CaseResult | None, case: Case, budget: str) -> bool:
    if found is None or found["settings"]["dataset"] is None:
        return False
    before = found["settings"]["budget"]
    same = found["settings"] == settings_of(case, before, found["settings"]["dataset"])
    return same and BUDGETS.index(before) >= BUDGETS.index(budget)


def _run(
    name: str,
    case: Case,
    digits: Digits | None,
    settings: dict[str, Any],
    parts: Parts,
    reason: str,
    on_progress: OnProgress,
) -> CaseResult:
    began = time.perf_counter()
    measured: Mapping[str, Any] = {}
    wanted = case.budgets.get(settings["budget"])
    if digits is not None and wanted is not None:
        on_progress(name, 0.0)
        lab = Lab(digits, lambda share: on_progress(name, share), parts)
        with _threads(1 if case.one_thread else torch.get_num_threads()):
            try:
                measured = case.measure(lab, wanted)
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as problem:
                if not parts.found:
                    raise
                raise parts.damaged(problem) from problem  # a part is not what its case computes
    return {
        "case": name,
        "title": case.title,
        "source": case.source,
        "rows": case.rows(measured, reason),
        "seconds": round(time.perf_counter() - began, 1),
        "settings": settings,
    }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
