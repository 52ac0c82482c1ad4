"""The directive `equations`: those of an optimizer's docstring, on its page above its rule.

The page of an optimizer shows them once: its API entry below is given without them.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import torch_scratch_optim

MATH = re.compile(r"^\.\. math::\n((?: +.*\n|\n)+)", flags=re.MULTILINE)


class Equations(SphinxDirective):
    """`{equations} ScratchAdam` shows the equations of that class."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        docstring = inspect.getdoc(getattr(torch_scratch_optim, self.arguments[0])) or ""
        found = MATH.search(docstring)
        assert found is not None, f"{self.arguments[0]} has no equations"
        container = nodes.container()
        lines = ["```{math}", *inspect.cleandoc(found[1]).splitlines(), "```"]
        self.state.nested_parse(StringList(lines), 0, container)
        return container.children


def drop(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = MATH.sub("", "\n".join(lines) + "\n").splitlines()


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("equations", Equations)
    app.connect("autodoc-process-docstring", drop)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
