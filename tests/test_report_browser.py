"""The report in a real browser: no message, no request, no overflow; sorting; without script."""

from __future__ import annotations

import pytest

from browser import CHROMIUM, Browser
from fake_runs import make, make_whole
from modicum.report import write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

ORDER = "[...document.querySelectorAll('#results .sortable tbody th')].map(c => c.innerText.trim())"
SORTED = "[...document.querySelectorAll('#results .sortable thead th')].map(c => c.ariaSort)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
HEAD = "#results .sortable thead button"


@pytest.fixture(scope="module")
def page(tmp_path_factory, no_pdf):
    """A report of three runs, one of them with a name that is too long for a phone."""
    root = tmp_path_factory.mktemp("report")
    update = "lora(rank=8, targets='attention') @ layers(1, 2, 3, 4, 5, 6, 7, 8) + parts(norm)"
    folders = [
        make_whole(root, "last(1)", 5, few=True),
        make_whole(root, "full", 2, few=True),
        make(root, update, trained=0.9),
    ]
    return write(folders, root / "report.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_completions_are_browsed_one_problem_at_a_time(browser, page):
    title = "document.querySelector('#written .shown h3').innerText"
    browser.load(page)
    assert "What is 0 + 0?" in browser.run(title)
    assert browser.run("document.querySelectorAll('#written .shown h3').length") == 1
    browser.click("#written .pager button", 1)
    assert "What is 1 + 1?" in browser.run(title)
    # Problems that the run with more right answers does not solve.
    select = "document.querySelector('#written .pager select')"
    names = f"[...{select}.options].map(o => o.text)"
    assert browser.run(names)[:2] == ["all problems", "where verdicts differ"]
    number = browser.run(names).index("not right: last(1)")
    browser.run(f"{select}.value = {number}; {select}.dispatchEvent(new Event('change'))")
    assert "What is 9 + 9?" in browser.run(title)
    assert browser.run("document.querySelector('#written .pager span').innerText") == "of 3"
    # Without the script the first three are there.
    browser.load(page, script=False)
    assert browser.run("document.querySelectorAll('#written .shown h3').length") == 3


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_no_message_no_request_no_overflow(browser, page, width, dark):
    browser.load(page, width, dark=dark)
    assert browser.run("innerWidth") == width
    assert browser.messages == []
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.run(OVERFLOW) == 0
    shown = ".broad svg" if width > 700 else ".narrow svg"
    assert browser.run(f"[...document.querySelectorAll('{shown}')].every(s => s.clientWidth > 300)")
    # What is drawn stays within its figure.
    texts = f"[...document.querySelectorAll('{shown} text')]"
    letters = f"{texts}.map(t => t.getBoundingClientRect())"
    assert browser.run(f"Math.min(...{letters}.map(b => b.left))") >= 0
    assert browser.run(f"Math.max(...{letters}.map(b => b.right))") <= width
    assert browser.run(f"Math.min(...{letters}.map(b => b.height))") >= 9


def test_the_policy_refuses_any_other_script(browser, page):
    browser.load(page)
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert browser.run("window.ran") is None
    assert any("Content Security Policy" in message for message in browser.messages)


def test_tables_sort_by_click_and_by_key(browser, page):
    browser.load(page)
    first = browser.run(ORDER)
    assert [name[:4] for name in first] == ["last", "full", "lora"]
    browser.click(HEAD, 0)
    assert browser.run(ORDER) == sorted(first)
    assert browser.run(SORTED)[0] == "ascending"
    # Accuracy, by its value: 34.6, 34.6, 90.
    browser.run(f"document.querySelectorAll('{HEAD}')[2].focus()")
    browser.key("Enter", 13)
    browser.key("Enter", 13)
    assert browser.run(ORDER)[0][:4] == "lora"
    assert browser.run(SORTED) == [None, None, "descending", None, None, None, None, None]


def test_a_phone_sorts_by_a_list(browser, page):
    browser.load(page, 390)
    browser.run(
        "(s => { s.value = '2 down'; s.dispatchEvent(new Event('change')); })"
        "(document.querySelector('#results select'))"
    )
    assert browser.run(ORDER)[0][:4] == "lora"


def test_values_are_shown_at_the_pointer(browser, page):
    browser.load(page)
    tip = "document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent"
    browser.point("figure .broad [data-tip]", 1)
    assert "last(1)" in browser.run(tip) and "34.6 %" in browser.run(tip)
    browser.point("#training .broad [data-line]", 0)
    lines = browser.run(tip).splitlines()
    assert lines[0].startswith("at ") and lines[1].startswith("last(1): ")
    # Half-way, between 10 % and 24.5 %.
    assert float(lines[1].split(": ")[1]) == pytest.approx(17.3, abs=0.5)
    browser.point("h1")
    assert browser.run(tip) == ""


def test_all_is_there_without_script(browser, page):
    browser.load(page, script=False)
    assert browser.messages == []
    text = browser.run("document.body.innerText")
    for part in ("12.3 → 34.6", "During training", "says 2", "modicum train --config"):
        assert part in text.replace("\u00a0", " ")
    assert browser.run("document.querySelectorAll('figure svg text').length") > 100
    assert browser.run("document.querySelectorAll('figure svg title').length") > 5
    assert browser.run("document.querySelectorAll('button, select').length") == 0


def test_it_prints_light_and_whole(browser, page, tmp_path):
    browser.load(page, dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run(
        "document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"
    )
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
