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
    "facts",
    "mathml",
    "torch_links",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore = [("py:class", "collections.abc.Callable")]  # Python's own

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Args say what is meant, and signatures stay torch's at a glance
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["deflist", "substitution"]
myst_substitutions = {
    "the_source_itself": (
        "This is the source itself, included when this page was made. `TensorLike` stands for a "
        "tensor or for many that move as one. Before any rule is run, the gradient `g` is negated "
        "for `maximize`, and λθ is added for `weight_decay`."
    )
}
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "torch-scratch-optim"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
