"""Any document as one self-contained HTML page.

Its policy lets nothing be loaded and only its own script run, which is named by its SHA-256; all
that the script does is sort tables and show values under the pointer, so the page is whole
without it. What a model wrote is escaped text. `report.html` has a macro for each kind of block.
"""

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Mapping

import jinja2
from markupsafe import Markup

from modicum.report.document import Document, marked
from modicum.report.style import Drawn

# Everything of ASCII and Latin-1 control but tab and line end, and lone surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def render(document: Document, drawn: Mapping[str, Drawn]) -> str:
    """The page as text; a figure that is not `drawn` is left out."""
    script = _file("page.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment_of().get_template("page.html")
    return template.render(
        document=document,
        drawn=drawn,
        marked=marked,
        css=Markup(_file("page.css").strip()),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


@functools.cache
def environment_of() -> jinja2.Environment:
    """What renders the templates of this package; all that they are given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "kind": lambda block: type(block).__name__}
    return environment


def printable(text: str, limit: int | None = None) -> str:
    """`text` with control characters replaced; beyond `limit` letters it says how many more."""
    text = UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more letters)"


def _file(name: str) -> str:
    place = importlib.resources.files("modicum.report").joinpath(name)
    return place.read_text(encoding="utf-8")
