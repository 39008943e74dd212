"""The Markdown of reports: the same content as the page, and nothing in it can break out."""

from __future__ import annotations

import re

import pytest

from fake_runs import HOSTILE, make, make_whole
from modicum.report import load, page, runs
from modicum.report.document import Figure


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    folders = [make_whole(root, "full", 2), make_whole(root, "last(1)", 5), make(root, "lora")]
    return runs.document([load(folder) for folder in folders], "A *title*")


@pytest.fixture(scope="module")
def text(found):
    return page.markdown(found, "x figures")


def test_it_has_the_sections_of_the_page(text):
    assert text.startswith("# A \\*title\\*\n")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [
        "Results",
        "By difficulty",
        "During training",
        "What the model wrote",
        "Proof of what was trained",
        "How the intervals are computed",
        "Settings",
        "Versions",
        "How to repeat it",
    ]
    for part in ("base of full says 1", "trained of last(1) says 1", "early words"):
        assert part in text
    assert "modicum train --config" in text


def test_figures_are_linked_with_their_text_alternative(text, found):
    links = re.findall(r"^!\[(.+)\]\(<(.+)>\)$", text, flags=re.MULTILINE)
    names = ["accuracy", "cost", "difficulty", "learning", "training"]
    assert [place for _, place in links] == [f"x figures/{name}.svg" for name in names]
    assert "base 12.3 %, full 34.6 %" in links[0][0]
    assert text.count(".pdf>)") == len(links) == len(found.blocks(Figure))


def test_every_row_of_a_table_is_as_long_as_its_head(text):
    tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(tables) > 4
    for table in tables:
        # A bar within a cell is escaped.
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


def test_the_figure_by_difficulty_has_its_numbers_in_words(text):
    assert (
        "by difficulty, at 1, 2 and 3: base 100, 0, 0; full 100, 50, 0; last(1) 100, 100, 25."
        in text
    )


def test_what_a_model_wrote_stays_in_its_block(text):
    block = f"```text\n{HOSTILE}\n```"
    assert block in text and "<script>" not in text.replace(block, "")
    nested = page.fenced("a\n```\n````\n# no heading")
    assert nested.startswith("`````text\n") and nested.endswith("\n`````")


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("a|b", r"a\|b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("two\nlines", "two lines"),
        ("[a](b) *c* `d` _e_", r"\[a](b) \*c\* \`d\` \_e\_"),
        ("x\x00y", "x\ufffdy"),
    ],
)
def test_texts_are_shown_as_they_are(raw, shown):
    assert page.escaped(raw) == shown


def test_code_may_hold_backticks_and_bars():
    assert page.code("last(1)") == "`last(1)`"
    assert page.code("a `b` | c") == r"`` a `b` \| c ``"
