"""Equations as MathML, which browsers draw themselves: no script, no font, no network."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


def mathml(latex: str, display: str = "inline") -> str:
    # A browser without a font for mathematics sets an accent into its symbol, unless it is an
    # ordinary sign that stands above.
    made = convert(latex, display=display)
    return made.replace(' accent="true"', "").replace("<mo>&#x0005E;", '<mo stretchy="false">ˆ')


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def display(self: HTML5Translator, node: nodes.math_block) -> None:
    lines = rf"\begin{{split}}{node.astext()}\end{{split}}"
    self.body.append(f'<div class="equations">{mathml(lines, display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
