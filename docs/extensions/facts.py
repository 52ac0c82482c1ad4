"""The directive `facts`: tables that are read off the code and the recorded results."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from benchmarks.facts import FACTS


class Facts(SphinxDirective):
    """`{facts} WHAT [OPTIMIZER ...]` puts a table there."""

    required_arguments = 1
    optional_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the results may change while the page does not
        what, *of = self.arguments
        container = nodes.container(classes=["facts", what])
        self.state.nested_parse(StringList(FACTS[what](*of).splitlines()), 0, container)
        return [container]


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("facts", Facts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
