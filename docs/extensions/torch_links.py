"""References to what is torch's, such as :class:`torch.optim.Adam`, lead to torch's own pages."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

SITE = "https://docs.pytorch.org/docs/stable"
PAGES = {
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.optim.Optimizer": "optim.html#torch.optim.Optimizer",
    "torch.optim.optimizer.Optimizer": "optim.html#torch.optim.Optimizer",  # where it is defined
    **{
        f"torch.optim.{name}": f"generated/torch.optim.{name}.html"
        for name in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Adadelta")
    },
}


def link(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    if (page := PAGES.get(node["reftarget"])) is None:
        return None
    return nodes.reference("", "", content, internal=False, refuri=f"{SITE}/{page}")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
