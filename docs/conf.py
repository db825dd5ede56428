"""How Sphinx builds these pages: ``make docs``."""

import re
from os.path import normpath
from pathlib import Path

from sphinx.application import Sphinx

import hessjax

project = "hessjax"
author = "The hessjax authors"
version = release = hessjax.__version__
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

# The formulas of theory.md are written as GitHub shows them: $…$ and fences named math.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

# Of hessjax.bridge, which needs it; the pages do not.
autodoc_mock_imports = ["torch"]
autodoc_member_order = "groupwise"
autodoc_typehints = "none"
napoleon_use_ivar = True

_ROOT = Path(__file__).parents[1]
_DOCS = {path.relative_to(_ROOT).as_posix(): path.name for path in _ROOT.glob("docs/*.md")}
# Where the files stand that these pages are, by their path in the repository.
_PAGES = {"README.md": "index.md", "experiments/README.md": "experiments.md", **_DOCS}


def setup(app: Sphinx) -> None:
    """Have each page read by `_read`."""
    app.connect("source-read", _read)


def _read(app: Sphinx, _name: str, source: list[str]) -> None:
    """Put in what a page includes, and lead links of the repository to pages.

    A file that is no page can be downloaded.
    """

    def included(match: re.Match[str]) -> str:
        path = Path("docs", match[1])
        app.env.note_dependency(_ROOT / path)
        return _led((_ROOT / path).read_text("utf-8"), Path(normpath(path)).parent)

    text = _led(source[0], Path("docs"))
    source[0] = re.sub(r"```\{include\} (\S+)\n```", included, text)


def _led(text: str, folder: Path) -> str:
    """Change the links of a file in this folder of the repository to those of a page."""

    def changed(match: re.Match[str]) -> str:
        path = normpath(folder / match[1])
        if not (_ROOT / path).exists():
            return match[0]  # code, or a mistake, of which Sphinx will tell
        page = _PAGES.get(path, f"../{path}" if match[0].startswith("!") else f"path:../{path}")
        return f"{match[0].split('](')[0]}]({page}{match[2] or ''})"

    return re.sub(r"!?\[[^][]*\]\(([^):#]+)(#[^)]*)?\)", changed, text)
