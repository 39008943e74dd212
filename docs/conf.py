"""The documentation as a site: `make docs` builds docs/_build/html, which works without a network.

The sources are this folder and the pages of the repository that it links to, at their own places,
so that links lead to the same files here and in the repository."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "src")]

import generated  # noqa: E402

project = "modicum"
author = copyright = "The modicum contributors"
version = release = metadata.version("modicum")
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

# Of the root only these: environments, runs and models are large.
KEPT = {"docs", "studies", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md"}
include_patterns = ["docs/**", "studies/*/README.md", "*.md"]
exclude_patterns = [name for name in os.listdir(ROOT) if name not in KEPT]
exclude_patterns += ["docs/_*"]
source_suffix = {".md": "markdown"}

nitpicky = True
smartquotes = False
myst_heading_anchors = 4
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
highlight_language = "none"

html_theme = "furo"
html_title = f"modicum {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "_static" / "scorer.js")
html_show_search_summary = False  # a page that lies on a disk may not fetch others
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}

CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def to_rst(text: str) -> str:
    """A line of our docstrings as reStructuredText: code is literal, all other signs are text."""
    parts, end = [], 0
    for found in CODE.finditer(text):
        parts += [escaped(text[end : found.start()]), f"``{found[2]}``\\ "]
        end = found.end()
    return "".join([*parts, escaped(text[end:])])


def escaped(text: str) -> str:
    return re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", text)


def docstring(app: Any, what: str, name: str, of: Any, opts: Any, lines: list[str]) -> None:
    """Paragraphs stay, indented ones are shown as they are."""
    paragraphs = "\n".join(lines).strip("\n").split("\n\n")
    made = []
    for paragraph in paragraphs:
        if paragraph.startswith("    "):
            shown = "\n".join(f"    {line}" for line in paragraph.splitlines())
            made.append(f"::\n\n{shown}")
        else:
            made.append(to_rst(paragraph))
    lines[:] = "\n\n".join(made).splitlines()


def setup(app: Any) -> None:
    generated.write(HERE / "reference")
    app.connect("autodoc-process-docstring", docstring)
