"""modicum.report: reading run folders, the table, the figures and the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from fake_runs import make, make_whole
from modicum import cli
from modicum.report import load, page, style, tables, words, write
from modicum.report import runs as report_of_runs
from modicum.report.document import Browsed, Document, Figure, Section, SideBySide, Table, compare
from modicum.report.figures import accuracy, curves, frontier
from modicum.report.read import (
    HeldCompletion,
    HeldGroup,
    by_difficulty,
    held_groups,
    labels,
)
from modicum.report.runs import headline
from modicum.report.study.read import ShownText
from modicum.report.words import printable
from modicum.stats import Interval
from modicum.types import UserError


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [make(tmp_path, update) for update in ("full", "last(1)", "lora(rank=8)")]


class Loads(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        data = tag == "script" and dict(attrs).get("type") == "application/json"
        if not data and tag in (
            "script",
            "link",
            "img",
            "iframe",
            "object",
            "embed",
            "audio",
            "video",
            "base",
        ):
            self.found.append(tag)
        for name, value in attrs:
            # A link loads nothing until it is followed, and leads to a file beside the page.
            inside = (value or "").startswith("#")
            beside = inside or (tag == "a" and not re.match(r"\w+:|/", value or ""))
            outside = name in ("src", "href") and not beside
            if outside or name.startswith("on"):
                self.found.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")


def test_load_gives_columns_with_nan_for_missing(tmp_path):
    folder = make(tmp_path, "full")
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "policy/kl": 0.5}\n{"step": 1, "policy/entropy": null}\n\n{"step": 2, "po'
    )
    record = load(folder)
    np.testing.assert_array_equal(record.metrics["step"], [0, 1])
    np.testing.assert_array_equal(record.metrics["policy/kl"], [0.5, np.nan])
    np.testing.assert_array_equal(record.metrics["policy/entropy"], [np.nan, np.nan])


def test_where_a_run_began_is_in_no_page(runs: list[Path]) -> None:
    assert load(runs[0]).environment == {"packages": {"numpy": "2.0"}}
    page.write(runs[:1])
    written = [path.read_text() for path in (runs[0] / "report.html", runs[0] / "report.md")]
    assert "2.0" in written[1] and not [text for text in written if "somebody" in text]


def test_load_keeps_the_later_line_of_a_repeated_step(tmp_path):
    folder = make(tmp_path, "full")
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 1, "a": 3}\n{"step": 2, "a": 4}\n'
    )
    np.testing.assert_array_equal(load(folder).metrics["a"], [1, 3, 4])


@pytest.mark.parametrize(
    "file, text, where",
    [
        ("metrics.jsonl", '{"step": 0}\n{"step": \n{"step": 2}\n', r"metrics\.jsonl:2"),
        ("metrics.jsonl", '{"step": 0}\n{"step": 1, "a": "x"}\n', r"metrics\.jsonl:2.*'a'"),
        ("metrics.jsonl", '{"a": 0}\n', r"metrics\.jsonl:1.*'step'"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl:1"),
        ("samples.jsonl", '{"step": 0}\n', r"samples\.jsonl:1.*'completion'"),
        ("config.toml", 'update = "full"\nseed = = 1\n', r"config\.toml.*line 2"),
        ("result.json", '{"update": "full",\n "seed" 1}', r"result\.json:2"),
        ("result.json", '{"seed": 1}', r"result\.json.*'update'"),
        ("result.json", '{"update": "full", "base": {"accuracy": "x"}}', r"base.*'accuracy'"),
    ],
)
def test_broken_file_is_named_with_its_line(tmp_path, file, text, where):
    folder = make(tmp_path, "full")
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=where) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.toml", "metrics.jsonl"])
def test_missing_file_is_named(tmp_path, file):
    folder = make(tmp_path, "full")
    (folder / file).unlink()
    with pytest.raises(UserError, match=file):
        load(folder)
    with pytest.raises(UserError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_table_shows_the_numbers_of_the_results(runs):
    rows = tables.results([load(folder) for folder in runs])
    table = tables.table(rows)
    assert tuple(cell.text for cell in table.rows[1]) == (
        "last(1)",
        "123,456 (10.0%)",
        "12.3 → 34.6 [31.6, 37.6]",
        "14.3 → 36.6",
        "13.3 → 35.6",
        "52.3 → 74.6",
        "654",
        "1.50 GiB",
    )
    text = page.markdown(Document("T", "", "", (), (Section("r", "R", (table,)),)), "")
    assert text.count("\n|") == 5
    assert "\n" + r"| `last(1)` | 123,456 (10.0%) | 12.3 → 34.6 \[31.6, 37.6] |" in text


def test_terminal_table_fits_in_100_columns(runs):
    stream = io.StringIO()
    table = tables.rich_table(tables.results([load(folder) for folder in runs]))
    Console(width=100, file=stream, color_system=None).print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "lora(rank=8)" in text and "12.3 → 34.6 [31.6, 37.6]" in text and "123k (10.0%)" in text


def test_table_without_a_measure_shows_a_dash(tmp_path):
    folder = make(tmp_path, "full")
    (folder / "result.json").write_text('{"update": "full", "base": null, "trained": null}')
    (row,) = tables.results([load(folder)])
    assert tables.sortable("row.txt", [row], number=words.count)[1][1][0].text == "— → —"
    assert accuracy.figure([row]) is None and frontier.figure([row]) is None


@pytest.mark.parametrize(
    "value, text",
    [(12, "12"), (81_920, "81.9k"), (999_700, "1M"), (14_912_384, "14.9M"), (7.6156e9, "7.62B")],
)
def test_short_counts(value, text):
    assert words.short(value) == text


def test_runs_of_one_update_are_told_apart_by_seed_and_share_a_colour(tmp_path):
    records = [load(make(tmp_path, "full", seed=seed)) for seed in (0, 1)]
    records.append(load(make(tmp_path, "last(1)")))
    assert labels(records) == ["full, seed 0", "full, seed 1", "last(1)"]
    assert [row.colour for row in tables.results(records)] == [0, 0, 1]


def test_headline_says_what_went_where(runs):
    rows = tables.results([load(folder) for folder in runs])
    assert headline(rows[:1]) == (
        "Training tiny took held-out accuracy on arithmetic from 12.3% to 34.6% with full"
        " (10.0% of the parameters trained)."
    )
    assert headline(rows).endswith(
        "34.6% with last(1) (10.0%) and to 34.6% with lora(rank=8) (10.0%)."
    )
    assert headline([]) == ""


def test_figures_are_the_same_twice_and_well_formed(runs):
    records = [load(folder) for folder in runs]
    found = [part.figure(tables.results(records)) for part in (accuracy, frontier)]
    assert [figure.name for figure in found] == ["accuracy", "cost"]
    drawn = page.draw(found[:1])
    assert drawn == page.draw(found[:1])
    for figure in drawn.values():
        for svg in (figure.broad, figure.narrow, figure.svg):
            assert ElementTree.fromstring(svg).attrib["role"] == "img"
            assert ElementTree.fromstring(svg).attrib["aria-label"] == found[0].label
            assert "lora(rank=8)" in svg
            ids = re.findall(r'\bid="([^"]+)"', svg)
            assert len(ids) == len(set(ids))
            for used in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
                assert used in ids
        assert "var(--series-2, #00784f)" in figure.broad
        # Other programs know no variables of CSS.
        assert "var(" not in figure.svg and "#00784f" in figure.svg
        assert figure.pdf.startswith(b"%PDF") and b"CreationDate" not in figure.pdf


def test_smoothing_keeps_a_line_and_short_series():
    np.testing.assert_allclose(curves.smooth(np.full(50, 3.0)), 3.0)
    np.testing.assert_array_equal(curves.smooth(np.array([1.0, 5.0])), [1.0, 5.0])


def test_steps_tokens_and_seconds_of_a_run(tmp_path):
    folder = make_whole(tmp_path, "full")
    record = load(folder)
    np.testing.assert_array_equal(record.columns["step"], np.arange(30))
    np.testing.assert_allclose(record.columns["seconds"], 2.5 * np.arange(1, 31))
    np.testing.assert_array_equal(record.columns["tokens"][:3], [1280, 2560, 3840])
    assert "tokens" not in load(make(tmp_path, "last(1)")).columns  # it logs none


def test_every_term_has_a_panel_and_what_stands_still_is_said_in_words(tmp_path):
    records = [load(make_whole(tmp_path, "full"))]
    titles = [metric.title for metric in curves.metrics([r.columns for r in records])]
    assert titles[:3] == ["Reward", "Accuracy on training samples", "Reward term format"]
    curve, rest = curves.figures(records, [0.1])
    assert "generated tokens and seconds" in curve.caption
    assert "reward term format (0.5)" in rest.caption
    assert "clip share (0)" in rest.caption and "KL" not in rest.caption
    assert "KL from the reference" in rest.label and "clip" not in rest.label


def test_seeds_become_a_mean_and_a_band(tmp_path):
    folders = [make(tmp_path, "full", seed=seed, steps=10 + 5 * seed) for seed in (0, 1)]
    rows = (folders[1] / "metrics.jsonl").read_text()
    (folders[1] / "metrics.jsonl").write_text(
        rows.replace('"reward/accuracy": 0.1', '"reward/accuracy": 0.3')
    )
    records = [load(folder) for folder in folders]
    line = curves.line([record.columns for record in records], curves.TRAINED)
    np.testing.assert_array_equal(line.x, np.arange(10))  # as far as both went
    np.testing.assert_allclose(line.high - line.low, 20)
    np.testing.assert_allclose(line.mean, (line.high + line.low) / 2)


def test_the_frontier_is_what_no_other_beats():
    pairs = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.6), (4.0, 0.9), (1.0, 0.1), (5.0, 0.9)]
    scored = [frontier.FrontierPoint("", "", "", Interval(y, y, y), x) for x, y in pairs]
    found = frontier.points(scored, frontier.Axis("", "", lambda cost: cost, str))
    assert [(p.x, p.y) for p in found if p.best] == [(1.0, 20), (2.0, 60), (4.0, 90)]


def test_completions_before_and_after_share_the_base_of_the_first_run(tmp_path):
    folders = [make_whole(tmp_path, "full", 2), make_whole(tmp_path, "last(1)", 5, base=False)]
    records = [load(folder) for folder in folders]
    (group,) = held_groups(records)
    assert group.runs == (0, 1) and len(group.base) == 36
    levels, rows = by_difficulty(group, labels(records))
    assert levels == {"1": 4, "2": 4, "3": 4}
    assert rows == [
        ("base", {"1": 1, "2": 0, "3": 0}),
        ("full", {"1": 1, "2": 0.5, "3": 0}),
        ("last(1)", {"1": 1, "2": 1, "3": 0.25}),
    ]
    found = report_of_runs.document(records, "t")
    # All problems, each with all its samples; no training samples beside them.
    (browsed,) = blocks(found, "written", Browsed)
    first, *others = browsed.problems
    assert first.title == "What is 0 + 0?" and len(others) == 11
    assert [s.about for s in others[3].columns[0].samples] == [
        *["right, not marked, 5 tokens"] * 2,
        "greedy: right, not marked, 5 tokens",
    ]
    assert [(w.name, w.samples[0].completion) for w in first.columns] == [
        ("base", "base of full says 0"),
        ("full", "trained of full says 0"),
        ("last(1)", "trained of last(1) says 0"),
    ]
    assert "difficulty" in [figure.name for figure in found.blocks(Figure)]


def test_of_many_runs_the_first_six_show_what_they_wrote(tmp_path):
    folders = [make(tmp_path, f"last({n})") for n in range(1, 9)]
    found = report_of_runs.document([load(folder) for folder in folders], "t")
    shown = blocks(found, "written", SideBySide)
    assert [run.title for run in shown] == [f"last({n})" for n in range(1, 7)]
    assert "2 more runs are left out here." in page.markdown(found, "figures")
    # They are rows now, and all still have their numbers.
    details = blocks(found, "results", Table)[1]
    assert details.heads[0] == "run" and len(details.rows) == 8


def test_runs_of_unequal_length_are_said_to_be(tmp_path):
    folders = [make(tmp_path, update) for update in ("full", "last(1)", "last(2)")]
    file = folders[1] / "result.json"
    note = "The runs are of unequal length"
    records = [load(folder) for folder in folders]
    assert not any(note in text for text in report_of_runs.document(records, "t").notes)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 40}))
    # As many tokens in more steps: a budget of tokens makes such runs, which are of one length.
    records[1] = load(folders[1])
    assert not any(note in text for text in report_of_runs.document(records, "t").notes)
    longer = json.loads(file.read_text()) | {"generated_tokens": 2_000_000}
    file.write_text(json.dumps(longer))
    records[1] = load(folders[1])
    (text,) = report_of_runs.document(records, "t").notes
    assert text.startswith(note) and "`last(1)` 40 steps, 2M tokens" in text


def test_two_runs_have_no_frontier(tmp_path):
    folders = [make(tmp_path, update, trained=0.5) for update in ("full", "last(1)")]
    found = frontier.figure(tables.results([load(folder) for folder in folders]))
    assert found is not None and "steps join" not in found.caption


def test_links_to_figures_and_data_beside_the_page(tmp_path, no_pdf):
    folder = make(tmp_path, "full")
    text = write([folder]).read_text(encoding="utf-8")
    assert '<a href="figures/accuracy.pdf">PDF</a>' in text
    assert '<a href="metrics.jsonl">metrics.jsonl</a>' in text
    assert "[metrics.jsonl](<metrics.jsonl>)" in (folder / "report.md").read_text()
    # A page elsewhere does not say where the run is.
    text = write([folder], tmp_path / "else where" / "x.html").read_text(encoding="utf-8")
    assert '<a href="x-figures/accuracy.pdf">PDF</a>' in text and "metrics.jsonl" not in text


def test_what_is_right_and_not_marked_is_not_called_wrong():
    pairs = ((True, True), (False, True), (False, False), (False, None))
    assert [words.say("verdict", of=ShownText("", *pair)) for pair in pairs] == [
        *("right", "right, not marked", "wrong", "not right and marked")
    ]


def test_a_column_that_no_run_has_is_left_out(tmp_path):
    folder = make(tmp_path, "full")
    (folder / "result.json").write_text('{"update": "full", "seconds": 12.5}')
    found = tables.table(tables.results([load(folder)]))
    assert found.heads == ("update", "seconds")
    assert [cell.text for cell in found.rows[0]] == ["full", "12.5"]


def test_many_difficulties_are_taken_together():
    rows = tuple(
        HeldCompletion(str(n), 0, "q", "g", "c", 1, True, n < 10, float(n)) for n in range(20)
    )
    levels, found = by_difficulty(HeldGroup((), (0,), (rows,)), ["run"])
    assert levels == {"0 to 3": 4, "4 to 7": 4, "8 to 11": 4, "12 to 15": 4, "16 to 19": 4}
    accuracies = {"0 to 3": 1, "4 to 7": 1, "8 to 11": 0.5, "12 to 15": 0, "16 to 19": 0}
    assert found == [("run", accuracies)]


def test_a_broken_completion_is_named_with_its_line(tmp_path):
    folder = make_whole(tmp_path, "full")
    lines = (folder / "completions-trained.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"strict": true', '"strict": "yes"')
    (folder / "completions-trained.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"completions-trained\.jsonl:3: 'strict'"):
        write([folder], tmp_path / "report.html")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of two runs with all there is, and of one without held-out completions."""
    root = tmp_path_factory.mktemp("report")
    folders = [make_whole(root, "full", 2), make_whole(root, "last(1)", 5), make(root, "lora")]
    return write(folders, root / "site" / "report.html", "A <b>title</b>")


@pytest.fixture(scope="module")
def report(written):
    return written.read_text(encoding="utf-8")


def blocks(found: Document, id: str, kind: type) -> list:
    """The blocks of a kind in a section."""
    (section,) = [section for section in found.sections if section.id == id]
    return [block for block in section.blocks if isinstance(block, kind)]


def bare(folder):
    """The run without a result and steps: nothing is to be drawn."""
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_page_is_self_contained_and_escapes_what_the_model_wrote(report):
    text = report
    page = Loads(text)
    assert page.found == ["script"]
    assert len(page.ids) == len(set(page.ids))
    assert "&lt;script&gt;alert(" in text
    # The one script is the one that the policy allows.
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in text
    assert re.findall(r"https?://", text.replace("src=https://evil.example", "")) == []
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    for part in (
        "early words",
        "base of full says 2",
        "trained of last(1) says 2",
        "Step 29",
        "12.3 → 34.6 [31.6,\u00a037.6]",
        "3 tensors changed",
        "sampling.group",
    ):
        assert part in text
    assert "middle words" not in text


def test_page_of_bare_runs_has_no_empty_sections(tmp_path):
    folder = bare(make(tmp_path, "full"))
    for name in ("samples.jsonl", "environment.json"):
        (folder / name).unlink()
    text = write([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Settings", "How to repeat it"]
    assert "No result yet: full, step 0." in text
    assert "<figure" not in text and "<table" not in text


def test_page_takes_any_text(tmp_path):
    folder = bare(make(tmp_path, "full"))
    odd = {
        "step": 0,
        "completion": "a\x00b\ud800c $x^2$ {{ 7*7 }}",
        "scores": {"<b>": None, "f": 1},
    }
    (folder / "samples.jsonl").write_text(json.dumps(odd) + "\n")
    text = write([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a\ufffdb\ufffdc $x^2$ {{ 7*7 }}" in text and "&lt;b&gt;" in text


def test_page_refuses_no_runs_and_unwritable_places(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write([], tmp_path / "report.html")
    with pytest.raises(UserError, match="cannot be written"):
        write([bare(make(tmp_path, "full"))], tmp_path)


def test_marks_have_texts_and_lines_can_be_read_at_the_pointer(report):
    assert "<title>last(1): 34.6 % [31.6, 37.6]</title>" in report
    assert "<title>last(1): 34.6 %, 123k trained parameters</title>" in report
    # The limits that stand beside a box give the first and the last step of a line in it.
    learning = report[report.index('aria-label="Accuracy on training') :]
    box = re.findall(r'data-box="([^"]+) linear linear"', learning)[0]
    x0, x1, _, _, left, right, *_ = map(float, box.split())
    line = re.findall(r'data-line="full">\s*<path d="([^"]+)"', learning)[0]
    places = [float(text) for text in re.findall(r"[-\d.]+", line)]
    for place, step in ((places[0], 0), (places[-2], 29)):
        assert left + (place - x0) / (x1 - x0) * (right - left) == pytest.approx(step, abs=0.01)


def test_figures_are_files_beside_the_page(written):
    names = ("accuracy", "cost", "difficulty", "learning", "training")
    folder = written.with_name("report-figures")
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "pdf")
    }
    assert written.with_suffix(".md").exists()


def test_headings_skip_no_level_and_tables_name_their_heads(report):
    text = report
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for cell in re.findall(r"<th\b[^>]*>", text):
        assert "scope=" in cell
    assert text.count("<table") == text.count("<caption") > 3
    assert text.count("<svg") == len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', text))
    for id in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{id}"' in text


def test_the_command_writes_the_report_of_one_folder_into_it(tmp_path, capsys):
    folder = make_whole(tmp_path, "full")
    (folder / "metrics.jsonl").write_text("")
    assert cli.run(["report", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("results")[0]["update"] == "full"
    assert {key: Path(path) for key, path in printed.items()} == {
        "report": folder / "report.html",
        "markdown": folder / "report.md",
        "figures": folder / "figures",
    }
    assert all(Path(path).exists() for path in printed.values())
    (tmp_path / "study.toml").write_text("")
    with pytest.raises(UserError, match="is a study"):
        cli.run(["report", str(tmp_path), str(folder)])


def test_places_of_a_report(tmp_path):
    found = page.places([tmp_path], "site/x.html")
    assert (found.markdown, found.figures) == (Path("site/x.md"), Path("site/x-figures"))
    assert page.places([tmp_path, tmp_path], None).report == Path("report.html")
    folder = bare(make(tmp_path, "full"))
    with pytest.raises(UserError, match=r"report\.html say"):
        write([folder], tmp_path / "report.md")


@pytest.mark.usefixtures("no_pdf")
def test_the_report_of_the_docs_is_written(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "report.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for update in ("full", "last(1)"):
        made = make(tmp_path, update)
        made.rename(tmp_path / f"{update.replace('(', '-').rstrip(')')}-seed0")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("runs/", ""), {})
    assert "Only the bars." in Path("mine.html").read_text()
    assert Path("mine-figures/accuracy.svg").is_file()


def test_settings_are_split_into_shared_and_different():
    shared, different = compare([{"a": {"b": 1}, "c": "x"}, {"a": {"b": 1}, "c": "y", "d": [1, 2]}])
    assert shared == {"a.b": "1"}
    assert different == {"c": ("x", "y"), "d": ("—", "[1, 2]")}


def test_long_text_says_what_is_left_out():
    assert printable("abcdef", 4) == "abcd … (2 more letters)"


def test_no_reward_of_training_is_compared_between_curricula(tmp_path):
    """The accuracy on the probe set takes its place."""
    folders = [make(tmp_path, "full"), make(tmp_path, "last(1)")]
    for folder, curriculum in zip(folders, ("uniform", "bandit"), strict=True):
        config = folder / "config.toml"
        config.write_text(f'curriculum = "{curriculum}"\n' + config.read_text())
        path = folder / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"probe/accuracy": n / 100} for n, row in enumerate(rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [load(folder) for folder in folders]
    said = [f"{figure.label} {figure.caption}" for figure in curves.figures(records, [0.1])]
    assert "probe set" in said[0]
    assert not any("training samples" in text or "eward" in text for text in said)
    assert "probe set" not in curves.figures(records[:1], [0.1])[0].label


def test_report_never_imports_torch():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    check = f"import sys, modicum.report, modicum.stats; assert not {heavy} & set(sys.modules)"
    path = {"PYTHONPATH": str(Path(style.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", check], env=path, check=True)
