"""Run folders to tables, figures and one page; no model is loaded, torch never imported."""

from modicum.report.page import write
from modicum.report.read import RunRecord, load

__all__ = ["RunRecord", "load", "write"]
