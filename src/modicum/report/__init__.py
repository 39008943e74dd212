"""Run folders to tables, figures and one self-contained page.

`read` loads a folder, `runs` builds the document of what is in it, `page` renders any
document. A report of runs is a study's without its statistics.
No model is ever loaded and torch is never imported: a report can be made on any machine.
"""

from modicum.report.page import write
from modicum.report.read import RunRecord, load

__all__ = ["RunRecord", "load", "write"]
