"""How Sphinx builds these pages: ``make docs``."""

import hessjax

project = "hessjax"
author = "The hessjax authors"
version = release = hessjax.__version__
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

# The formulas of theory.md are written as GitHub shows them: $…$ and fences named math.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
# The README and these pages link to files of the repository, which are no pages.
suppress_warnings = ["myst.xref_missing"]

# Of hessjax.bridge, which needs it; the pages do not.
autodoc_mock_imports = ["torch"]
autodoc_member_order = "groupwise"
autodoc_typehints = "none"
napoleon_use_ivar = True
