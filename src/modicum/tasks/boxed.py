r"""The gold answer of a worked solution: the content of its last \boxed{...} (or \fbox{...})."""

from __future__ import annotations

import re

from modicum import answers
from modicum.types import UserError

FRAMED = re.compile(r"\\fbox(?![A-Za-z])")


def gold(solution: str) -> str | None:
    """The content of the last box, or None when there is no box that is closed.

    Raises UserError when the last box is empty.
    """
    text = FRAMED.sub(r"\\boxed", solution)
    start = text.find(r"\boxed")
    # From the first box on: a tag or #### before it is no answer of these solutions.
    found = answers.extract(text[start:]) if start >= 0 else None
    if found is None:
        return None
    if not found:
        raise UserError("the last box of the solution is empty")
    return found
