"""The report as one self-contained page: figures, style and script are in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.analysis import Trial
from benchmarks.study.report import texts
from benchmarks.study.report.drawing import svg_inline
from benchmarks.study.report.limits import limits
from benchmarks.study.report.tables import trials_table

Facts = dict[str, Any]

SIGNS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # matplotlib's markers


def page(
    about: Facts,
    facts: Facts,
    figures: Mapping[str, Mapping[str, Figure]],
    trials: Sequence[Trial],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["rich"] = _rich
    return environment.get_template("page.html").render(
        texts=texts,
        about=about,
        comparisons=[
            {
                "key": f"comparison-{key}",
                "heading": texts.heading(comparison),
                "conditions": texts.conditions(comparison),
                "verdict": texts.verdict(comparison) if comparison["ranking"] else None,
                "sections": list(texts.sections(comparison)),
                "svg": {name: _inline(f"{key}-{name}", figure) for name, figure in drawn.items()},
            }
            for comparison, (key, drawn) in zip(facts["comparisons"], figures.items(), strict=True)
        ],
        optimizers=_in_use(facts),
        limits=limits(facts),
        trials=trials_table(trials),
    )


def _inline(name: str, figure: Figure) -> Markup:
    title = figure.axes[0].get_title("left")
    return Markup(svg_inline(figure, name, title))  # in which matplotlib has escaped all texts


def _in_use(facts: Facts) -> dict[str, dict[str, str]]:
    """The optimizers of the study with their colours and signs, for the check boxes."""
    used = {
        entry["optimizer"]
        for comparison in facts["comparisons"]
        for entry in (*comparison["ranking"], *comparison["sensitivity"])
    }
    return {
        name: {"title": entry.title, "colour": entry.colour, "sign": SIGNS[entry.marker]}
        for name, entry in OPTIMIZERS.items()
        if name in used
    }


def _rich(text: str) -> Markup:
    """The Markdown of the texts as HTML: **strong** and `code`."""
    html = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return Markup(re.sub(r"`(.+?)`", r"<code>\1</code>", html))
