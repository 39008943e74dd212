"""examples/grpo_in_one_page.py: short, and it learns."""

from __future__ import annotations

import runpy
from pathlib import Path
from statistics import fmean

PAGE = Path(__file__).resolve().parent.parent / "examples" / "grpo_in_one_page.py"


def test_the_page_learns() -> None:
    history = runpy.run_path(str(PAGE))["main"](20)
    assert len(history) == 20
    assert fmean(history[-5:]) > fmean(history[:5]) + 0.2


def test_the_page_is_one_page() -> None:
    assert 60 <= len(PAGE.read_text().splitlines()) <= 80
