"""Run cases, first with the right optimizers and then with wrong ones; keep what is finished."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common.command import CannotRun, in_a_line
from benchmarks.common.data import DataError, Digits, find_data_dir, load_digits
from benchmarks.common.reading import (
    Shape,
    among,
    many,
    mapping,
    number,
    perhaps,
    read_results,
    shaped,
    text,
    whole,
    yes_or_no,
)
from benchmarks.common.record import conditions, write_json
from benchmarks.reproductions.case import BUDGETS, DIFFERS, NOT_RUN, REPRODUCED, Case, Lab, Settings
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.parts import Parts
from benchmarks.reproductions.table import CaseResult

RESULT = "reproductions.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Experiment:
    """A case with the right optimizers, or with a wrong one in their place."""

    case: str
    wrong: str | None = None

    @property
    def file_name(self) -> str:
        return "_".join([self.case, *re.findall("[a-z0-9]+", self.wrong or "")])


OnExperiment = Callable[[Experiment, int, int], Callable[[float], None]]


def unobserved(experiment: Experiment, number: int, total: int) -> Callable[[float], None]:
    return lambda share: None


def run_cases(
    names: Sequence[str],
    out: Path,
    data_dir: Path | None = None,
    on_experiment: OnExperiment = unobserved,
    *,
    budget: str = "standard",
    device: torch.device = CPU,
    cases: Mapping[str, Case] | None = None,
    digits: Digits | None = None,
    try_wrong: bool = True,
    command: str = "",
) -> list[CaseResult]:
    """Run cases and keep them in `out`/reproductions.json, which is written after each experiment.

    What is there already, run with the same settings or by a larger budget, is not run again.
    Without MNIST only those cases are run that do not need it, and the rows of the others say so.

    Args:
        names: of cases, any of `CASES`; each is run once.
        out: a folder; whatever else is in its reproductions.json stays.
        data_dir: where MNIST is, or is to be downloaded to (default: as everywhere).
        on_experiment: is called before each experiment with its number, from 1, and the number of
            all; what it returns is told the share of it that is done, 0 … 1.
        cases: what to take in the place of `CASES`.
        digits: MNIST, if it is loaded already.
        try_wrong: try the figures with wrong optimizers, too.
        command: the command line, which is written down.

    Returns:
        The cases that were named, as reproductions.json has them.

    Raises:
        CannotRun: no such case or budget, or reproductions.json is not one.
    """
    cases = CASES if cases is None else cases
    _check(names, budget, cases)
    results = {result["case"]: result for result in read_cases(out)}
    chosen = list(dict.fromkeys(names))
    todo = experiments(chosen, results, cases, budget, try_wrong)
    reason = ""
    if digits is None and any(cases[experiment.case].needs_mnist for experiment in todo):
        try:
            digits = load_mnist(data_dir, device)
        except DataError as problem:
            reason = in_a_line(str(problem))

    def write() -> None:
        content = {"cases": list(results.values())}
        write_json(out / RESULT, conditions(device, command) | content)

    if not (out / RESULT).exists():
        write()  # by which a job is known that can be resumed
    for count, experiment in enumerate(todo, start=1):
        name, case = experiment.case, cases[experiment.case]
        on_share = on_experiment(experiment, count, len(todo))
        if case.needs_mnist and digits is None:
            results[name] = _result(name, case, budget, None) | {"rows": case.rows({}, reason)}
        else:
            _run(experiment, case, budget, digits, results, out, on_share)
        write()
        on_share(1.0)
    return [results[name] for name in chosen]


def experiments(
    names: Sequence[str],
    results: Mapping[str, CaseResult],
    cases: Mapping[str, Case],
    budget: str,
    try_wrong: bool,
) -> list[Experiment]:
    """What is left to run: all cases with the right optimizers come before any wrong one."""
    kept = {n: results[n] for n in names if _is_kept(results.get(n), cases[n], budget)}
    right = [Experiment(name) for name in names if name not in kept]
    wrong = [
        Experiment(name, optimizer)
        for name in names
        if try_wrong and budget in cases[name].wrong
        for optimizer in cases[name].wrong_names()
        if not _is_tried(kept.get(name), cases[name], budget, optimizer)
    ]
    return right + wrong


def load_mnist(
    data_dir: Path | None, device: torch.device, announce: Callable[[str], None] = lambda text: None
) -> Digits:
    """MNIST, and nothing in its place."""
    try:
        directory, named = find_data_dir(data_dir)
        return load_digits("mnist", directory, device, named=named, announce=announce)
    except DataError as problem:
        # There is no such choice here.
        message = str(problem).removesuffix(", or choose --dataset synthetic")
        raise DataError(message) from problem


def _check(names: Sequence[str], budget: str, cases: Mapping[str, Case]) -> None:
    if unknown := [name for name in names if name not in cases]:
        raise CannotRun(f"no case {unknown[0]!r}; there are {', '.join(cases)}")
    if budget not in BUDGETS:
        raise CannotRun(f"no budget {budget!r}; there are {', '.join(BUDGETS)}")


ROW: Shape = {
    **dict.fromkeys(("quantity", "tolerance", "note"), text),
    "verdict": among((REPRODUCED, DIFFERS, NOT_RUN)),
    "published": lambda value: number(value) or text(value) or many(number, 2)(value),
    "ours": perhaps(number),
    "our_spread": perhaps(many(number, 2)),
    "seeds": many(whole(), 2),
    "wrong": perhaps(mapping(text, shaped({"value": perhaps(number), "rejected": yes_or_no}))),
}
CASE: Shape = {
    **dict.fromkeys(("case", "title", "source"), text),
    "rows": many(shaped(ROW), 1),
    "seconds": number,
    "settings": {"budget": among(BUDGETS), "dataset": perhaps(text)},
    "wrong": mapping(text, shaped({"budget": among(BUDGETS), "dataset": perhaps(text)})),
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


def settings_of(by_budget: Mapping[str, Settings], budget: str, dataset: str | None) -> Settings:
    """What decides an experiment's figures, as JSON has it."""
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in by_budget.get(budget, {}).items()
    }
    return {"budget": budget, "dataset": dataset, **settings}


def _is_kept(result: CaseResult | None, case: Case, budget: str) -> bool:
    if result is None or [row["quantity"] for row in result["rows"]] != [
        figure.quantity for figure in case.figures.values()
    ]:
        return False
    return _is_current(result["settings"], case.budgets, budget) and (
        result["settings"]["dataset"] is not None or not case.needs_mnist
    )


def _is_tried(result: CaseResult | None, case: Case, budget: str, wrong: str) -> bool:
    tried = {} if result is None else result["wrong"]
    return wrong in tried and _is_current(tried[wrong], case.wrong, budget)


def _is_current(settings: Settings, by_budget: Mapping[str, Settings], budget: str) -> bool:
    """Whether settings are still those of their budget, and it is at least this one."""
    before = settings["budget"]
    same = settings == settings_of(by_budget, before, settings["dataset"])
    return same and BUDGETS.index(before) >= BUDGETS.index(budget)


def _result(name: str, case: Case, budget: str, dataset: str | None) -> CaseResult:
    return {
        "case": name,
        "title": case.title,
        "source": case.source,
        "rows": case.rows({}),
        "seconds": 0.0,
        "settings": settings_of(case.budgets, budget, dataset),
        "wrong": {},
    }


def _run(
    experiment: Experiment,
    case: Case,
    budget: str,
    digits: Digits | None,
    results: dict[str, CaseResult],
    out: Path,
    on_share: Callable[[float], None],
) -> None:
    """Run one experiment and put what it measures into the results."""
    name, wrong = experiment.case, experiment.wrong
    by_budget = case.budgets if wrong is None else case.wrong
    dataset = digits.name if digits is not None and case.needs_mnist else None
    settings = settings_of(by_budget, budget, dataset)
    parts = Parts(out, experiment.file_name, settings)
    began = time.perf_counter()
    on_share(0.0)
    measured = {}
    if budget in by_budget:
        with _threads(1 if case.one_thread else torch.get_num_threads()):
            try:
                measured = dict(
                    case.measure(Lab(digits, on_share, parts, wrong), by_budget[budget])
                )
            except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as problem:
                if not parts.are_resumed:
                    raise
                raise parts.damaged(problem) from problem  # a part is not what its case computes
    if wrong is None:
        results[name] = _result(name, case, budget, dataset) | {
            "rows": case.rows(measured),
            "seconds": round(time.perf_counter() - began, 1),
        }
    else:
        result = results[name]
        result["wrong"][wrong] = settings
        for (key, figure), row in zip(case.figures.items(), result["rows"], strict=True):
            row["wrong"].pop(wrong, None)
            if key in measured:
                value = measured[key].value
                row["wrong"][wrong] = {"value": value, "rejected": not figure.holds(measured[key])}
    parts.remove()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
