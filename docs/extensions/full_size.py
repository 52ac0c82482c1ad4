"""Every image links to its own file, so that a click opens it in full size."""

from __future__ import annotations

import posixpath
from urllib.parse import quote

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


def open_link(self: HTML5Translator, node: nodes.image) -> None:
    name = self.builder.images[node["uri"]]
    href = posixpath.join(self.builder.imgpath, quote(name))
    self.body.append(f'<a class="full-size" href="{href}">')
    HTML5Translator.visit_image(self, node)


def close_link(self: HTML5Translator, node: nodes.image) -> None:
    HTML5Translator.depart_image(self, node)
    self.body.append("</a>")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_node(nodes.image, override=True, html=(open_link, close_link))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
