"""The site: `sphinx-build -W -n docs docs/_build`. It is read and built without a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "extensions"), str(Path(__file__).parents[1])]

from torch_scratch_optim import __version__  # noqa: E402  # of this checkout

project = "torch-scratch-optim"
author = "the authors of torch-scratch-optim"
release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "equations",
    "facts",
    "full_size",
    "mathml",
    "torch_links",
]
exclude_patterns = ["_build", "templates"]
nitpicky = True
nitpick_ignore = [("py:class", "collections.abc.Callable")]  # Python's own

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Args say what is meant, and signatures stay torch's at a glance
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["deflist", "substitution"]
myst_substitutions = {
    "about_the_rule": (
        "This is the source code itself, included when the site is built. `TensorLike` stands for "
        "a tensor, or for a list of tensors that are updated together. The optimizer prepares the "
        "gradient `g` before it calls the rule: it negates `g` for `maximize` and adds λθ for "
        "`weight_decay`."
    )
}
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "torch-scratch-optim"
# The address of the repository. Once it is set, the sidebar links to it.
html_context = {"repository": ""}
templates_path = ["templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/repository.html",
        "sidebar/scroll-end.html",
    ]
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
