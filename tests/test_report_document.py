"""Any document is rendered to HTML and Markdown, block by block, and both say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modicum.report import page, words
from modicum.report.document import (
    Browsed,
    Builder,
    Bullets,
    Commands,
    Document,
    Figure,
    Folded,
    Heading,
    Piece,
    Proofs,
    Sample,
    Section,
    SideBySide,
    Text,
    Values,
    Written,
    across,
    browsed,
    flattened,
    table,
)
from modicum.report.study.read import ShownText
from modicum.report.style import Drawn

FIGURE = Figure("bars", "Two bars", "What they are.", lambda narrow: pytest.fail("not drawn"))
SAMPLE = Sample("4</script>", "right")
TABLE = table("Numbers", ("run", "value"), [("a, seed 1", "1, 2"), ("b", "3")])
# Block -> (what the page has, what the Markdown has).
EXAMPLES: list[tuple[Piece, str, str]] = [
    (Text("so `x` < 1"), "<p>so <code>x</code> &lt; 1</p>", "so `x` \\< 1\n"),
    (Text("small", note=True), '<p class="note">small</p>', "small\n"),
    (Heading("More"), "<h3>More</h3>", "### More\n"),
    (Bullets(("a `b`", "c")), "<li>a <code>b</code></li>\n<li>c</li>", "- a `b`\n- c\n"),
    (
        Values("Shared", {"steps": "4"}),
        '<h3>Shared</h3>\n<dl class="settings">\n<div><dt>steps</dt><dd>4</dd></div>',
        "Shared:\n\n| setting | value |\n| :-- | --: |\n| `steps` | `4` |\n",
    ),
    (
        Proofs("", (("full", "3 of 3"),)),
        '<dt>full</dt><dd class="note">3 of 3</dd>',
        "- `full`: 3 of 3\n",
    ),
    (Commands(("make a", "make b")), "<pre>make a\nmake b\n</pre>", "```sh\nmake a\nmake b\n```\n"),
    (
        SideBySide("1 + 1?", (Written("base", None, (Sample("two", "wrong"),)),), "2"),
        '<h3>1 + 1? <span class="note">Answer: 2</span></h3>\n<div class="pair">\n<div>\n'
        '<h4>base</h4>\n<article class="sample">\n<pre dir="auto">two</pre>\n'
        "<footer>wrong</footer>",
        "### 1 + 1? (2)\n\n`base`, wrong:\n\n```text\ntwo\n```\n",
    ),
    (
        Browsed((SideBySide("2 + 2?", (Written("base", 0, (SAMPLE, SAMPLE)),)),) * 2),
        '<div class="browse">\n<div class="shown">\n<h3>2 + 2?</h3>',
        "### 2 + 2?\n\n`base`, right:\n\n```text\n4</script>\n```\n",
    ),
    (
        TABLE,
        '<th role="rowheader" scope="row">a, seed\u00a01</th>\n'
        '<td role="cell" data-head="value"><span>1,\u00a02</span></td>',
        "Numbers:\n\n| run | value |\n| :-- | --: |\n| a, seed 1 | 1, 2 |\n| b | 3 |\n",
    ),
    (
        FIGURE,
        '<div class="broad"><svg>broad</svg></div>\n<div class="narrow"><svg>narrow</svg></div>\n'
        '<figcaption class="note">What they are.</figcaption>',
        "![Two bars](<pics/bars.svg>)\n\n"
        "What they are. ([SVG](<pics/bars.svg>), [PDF](<pics/bars.pdf>))\n",
    ),
    (
        Folded("Open me", (Text("inside"), FIGURE)),
        "<summary>Open me</summary>\n<p>inside</p>\n<figure>",
        "inside\n\n![Two bars]",
    ),
]
DRAWN = {"bars": Drawn("<svg>broad</svg>", "<svg>narrow</svg>", "", b"")}


def document(*blocks: Piece) -> Document:
    return Document("T", "Head", "So it is.", ("a note",), (Section("one", "One", blocks),))


@pytest.mark.parametrize(
    ("block", "shown", "text"), EXAMPLES, ids=[type(block).__name__ for block, _, _ in EXAMPLES]
)
def test_a_block_in_both_forms(block: Piece, shown: str, text: str) -> None:
    assert shown in re.sub(r"\n+", "\n", page.html(document(block), DRAWN))
    assert text in page.markdown(document(block), "pics")


def test_what_can_be_browsed_ends_no_script_and_is_whole() -> None:
    (block,) = (block for block, _, _ in EXAMPLES if isinstance(block, Browsed))
    text = page.html(document(block), {})
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data) == [["2 + 2?", "", [["base", 0, [["4</script>", "right"]] * 2]]]] * 2


def test_a_page_of_many_long_completions_stays_small() -> None:
    text = ShownText("x" * 5000, strict=True)
    problems = [(str(n), "q", "a") for n in range(1000)]
    found = browsed(problems, [("base", None, {key: [text] for key, *_ in problems})])
    assert found is not None and len(found.problems) == 200
    assert len(page.html(document(found), {})) < 400_000


def test_settings_are_written_for_people() -> None:
    values = {"a": 0.1 * 3, "b": None, "c_bytes": 2**30, "d": 60000.0, "e": [0, 1], "f": True}
    assert flattened(values) == {
        **{"a": "0.3", "c_bytes": "1.00 GiB", "d": "60000", "e": "[0, 1]", "f": "true"}
    }


def test_settings_as_by_default_are_folded() -> None:
    report = Builder()
    report.section("settings", "Settings")
    report.values("Same", {"model": "tiny", "steps": 7, "batch": {"group_size": 8}}, usual=True)
    (section,) = report.sections()
    own, folded = section.blocks
    assert own == Values("Same", {"steps": "7"})
    assert folded == Folded(
        "2 more, as by default", (Values("", {"model": "tiny", "batch.group_size": "8"}),)
    )


def test_every_kind_of_block_is_among_the_examples() -> None:
    assert {type(block) for block, _, _ in EXAMPLES} == set(Piece.__subclasses__())


def test_the_head_of_both_forms() -> None:
    shown, text = page.html(document(), {}), page.markdown(document(), "pics")
    for part in (
        "<title>T</title>",
        '<p class="headline">Head</p>',
        '<p class="conclusion">So it is.</p>',
        '<p class="note">a note</p>',
        '<li><a href="#one">One</a></li>',
        '<section id="one">\n<h2>One</h2>',
    ):
        assert part in shown
    assert text.startswith("# T\n\n**Head**\n\nSo it is.\n\na note\n\n## One\n")


def test_a_table_does_not_repeat_the_heading_above_it() -> None:
    found = page.markdown(document(Heading("Numbers"), TABLE), "pics")
    assert "### Numbers\n\n| run |" in found
    assert "Numbers:\n\n" in page.markdown(document(Heading("Other"), TABLE), "pics")


def test_figures_are_found_where_they_are_folded() -> None:
    assert document(Text("a"), Folded("b", (FIGURE,))).blocks(Figure) == [FIGURE]
    # One that was not drawn leaves no hole.
    assert "<figure" not in page.html(document(FIGURE), {})


def test_few_runs_are_columns_and_many_are_rows() -> None:
    few = across("n", [("length", ["1", "2"])], ["a", "b"])
    assert few is not None and few.heads == ("", "a", "b") and not few.sortable
    many = across("n", [("length", list("12345"))], list("abcde"))
    assert many is not None and many.heads == ("run", "length")
    assert [cell.text for cell in many.rows[0]] == ["a", "1"]
    assert across("n", [], ["a"]) is None


def test_every_text_is_asked_for_by_its_name() -> None:
    folder = Path(words.__file__).parent
    names = re.findall(r"^== (\w+)$", (folder / "words.txt").read_text("utf-8"), re.MULTILINE)
    code = "".join(path.read_text("utf-8") for path in folder.parent.rglob("*.py"))
    assert len(names) == len(set(names))
    assert [name for name in names if f'"{name}"' not in code] == []


def test_a_text_is_one_line_and_values_in_it_are_not_templates() -> None:
    assert words.say("missing", absent=["{{ 7 }}", "b"]).startswith(
        "The run folders of {{ 7 }} and b are not here, nor is a copy of their curves: curves,"
    )
