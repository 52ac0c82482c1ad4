"""The report as Markdown, with its figures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.study.analysis import Trial
from benchmarks.study.report.limits import limits
from benchmarks.study.report.tables import trials_table
from benchmarks.study.report.texts import (
    LIMITS_TITLE,
    TITLE,
    TRIALS_TITLE,
    conditions,
    heading,
    sections,
)

Facts = dict[str, Any]


def paper(
    about: Facts,
    facts: Facts,
    figures: Mapping[str, Mapping[str, Any]],
    trials: Sequence[Trial],
) -> str:
    return "\n\n".join(_parts(about, facts, figures, trials)) + "\n"


def _parts(
    about: Facts,
    facts: Facts,
    figures: Mapping[str, Mapping[str, Any]],
    trials: Sequence[Trial],
) -> Iterator[str]:
    yield f"# {TITLE}"
    yield f"Data: **{about['dataset']}**. {about['provenance']}"
    for comparison, (key, drawn) in zip(facts["comparisons"], figures.items(), strict=True):
        yield f"## {heading(comparison)}"
        yield conditions(comparison)
        for section in sections(comparison):
            yield f"### {section.title}"
            yield section.text
            for name in section.figures:
                title = drawn[name].axes[0].get_title("left")
                yield f"![{title}](figures/{key}_{name}.svg)"
            if section.table is not None:
                yield section.table.markdown()
    yield f"## {LIMITS_TITLE}"
    yield "\n".join(f"* {limit}" for limit in limits(facts))
    yield f"## {TRIALS_TITLE}"
    yield f"<details><summary>{len(trials)} trials</summary>"
    yield trials_table(trials).markdown()
    yield "</details>"
