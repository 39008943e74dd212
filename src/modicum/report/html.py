"""Any document as one self-contained HTML page.

Its policy lets nothing be loaded and only its own script run, which is named by its SHA-256; all
that the script does is sort tables and show values under the pointer, so the page is whole
without it. What a model wrote is escaped text. `page.html` has a macro for each kind of block.
"""

import base64
import hashlib
from collections.abc import Mapping

from markupsafe import Markup

from modicum.report import words
from modicum.report.document import Document
from modicum.report.style import Drawn


def render(document: Document, drawn: Mapping[str, Drawn]) -> str:
    """The page as text; a figure that is not `drawn` is left out."""
    script = words.file("page.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        words.environment()
        .get_template("page.html")
        .render(
            document=document,
            drawn=drawn,
            css=Markup(words.file("page.css").strip()),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
        )
    )
