"""Run folders to tables, figures and one self-contained page.

`read` loads a folder, `tables` and `figures` show what is in it, `page` writes the HTML.
No model is ever loaded and torch is never imported: a report can be made on any machine.
"""

from __future__ import annotations

from modicum.report.page import write
from modicum.report.read import RunRecord, load

__all__ = ["RunRecord", "load", "write"]
