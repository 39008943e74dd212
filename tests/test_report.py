"""modicum.report: reading run folders, the table, the figures and the page."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from modicum.report import figures, load, tables, write
from modicum.report.page import compare, headline, printable
from modicum.report.read import labels
from modicum.types import UserError

HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'


def evaluation(accuracy: float, **other: object) -> dict[str, object]:
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.03,
        "high": accuracy + 0.03,
        "greedy": accuracy + 0.01,
        "lenient": accuracy + 0.02,
        "format": 0.9,
        "truncated": 0.05,
        "length": 40.0 + 100 * accuracy,
        "num_problems": 300,
        "samples_per_problem": 4,
    } | other


def make(root: Path, update: str, trained: float = 0.3456, seed: int = 0, steps: int = 30) -> Path:
    folder = root / f"{update}-{seed}"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'update = "{update}"\ntask = "arithmetic"\nseed = {seed}\n[sampling]\ngroup = 8\n'
    )
    rows = [
        {
            "step": step,
            "reward/accuracy": 0.1 + step / 200,
            "completions/length_mean": 40 + step,
            "policy/entropy": 1.0 - step / 60,
            "time/step_seconds": 2.5,
            "time/sampling_seconds": 1.5,
        }
        for step in range(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"step": step, "question": "1 + 1?", "gold": "2", "completion": text, "reward": 0.5}
        for step, text in ((0, "early words"), (15, "middle words"), (29, HOSTILE))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    result = {
        "update": update,
        "model": "tiny",
        "task": "arithmetic",
        "reward": "accuracy",
        "objective": "grpo",
        "seed": seed,
        "steps": steps,
        "base": evaluation(0.1234),
        "trained": evaluation(trained),
        "trainable_parameters": 123_456,
        "total_parameters": 1_234_560,
        "seconds": 654.3,
        "peak_memory_bytes": 3 * 2**29,
        "generated_tokens": 987_654,
        "change_proof": "3 tensors changed, 9 are bit-identical",
        "agreement_max": 2e-6,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "environment.json").write_text(json.dumps({"packages": {"numpy": "2.0"}}))
    return folder


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
        if tag in ("script", "link", "img", "iframe", "object", "embed", "audio", "video", "base"):
            self.found.append(tag)
        for name, value in attrs:
            outside = name in ("src", "href") and not (value or "").startswith("#")
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
    assert tables.cells(rows[1]) == (
        "last(1)",
        "123,456 (10.0%)",
        "12.3 → 34.6 [31.6, 37.6]",
        "13.3 → 35.6",
        "52.3 → 74.6",
        "654",
        "1.50 GiB",
    )
    lines = tables.markdown(rows).splitlines()
    assert len(lines) == 5
    assert "| `last(1)` | 123,456 (10.0%) | 12.3 → 34.6 [31.6, 37.6] |" in lines[3]


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
    assert tables.cells(row)[2] == "— → —"
    assert figures.bars([row]) == ""


@pytest.mark.parametrize(
    "value, text",
    [(12, "12"), (81_920, "81.9k"), (999_700, "1M"), (14_912_384, "14.9M"), (7.6156e9, "7.62B")],
)
def test_short_counts(value, text):
    assert tables.short(value) == text


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
    rows = tables.results(records)
    for draw in (lambda: figures.curves(records), lambda: figures.bars(rows)):
        svg = draw()
        assert svg == draw()
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "lora(rank=8)" in svg and "var(--series-2, #009e73)" in svg
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        for used in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
            assert used in ids


def test_smoothing_keeps_a_line_and_short_series():
    np.testing.assert_allclose(figures.smooth(np.full(50, 3.0)), 3.0)
    np.testing.assert_array_equal(figures.smooth(np.array([1.0, 5.0])), [1.0, 5.0])


def test_page_is_self_contained_and_escapes_what_the_model_wrote(runs, tmp_path):
    out = write(runs, tmp_path / "site" / "report.html", "A <b>title</b>")
    text = out.read_text(encoding="utf-8")
    page = Loads(text)
    assert page.found == []
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in text and "&lt;script&gt;alert(" in text
    assert re.findall(r"https?://", text.replace("src=https://evil.example", "")) == []
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    for part in ("early words", "Step 29", "12.3 → 34.6", "3 tensors changed", "sampling.group"):
        assert part in text
    assert "middle words" not in text


def test_page_of_bare_runs_has_no_empty_sections(tmp_path):
    folder = make(tmp_path, "full")
    for name in ("samples.jsonl", "result.json", "environment.json"):
        (folder / name).unlink()
    (folder / "metrics.jsonl").write_text("")
    text = write([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Settings"]
    assert "No result yet: full." in text
    assert "<figure" not in text and "<table" not in text


def test_page_takes_any_text(tmp_path):
    folder = make(tmp_path, "full")
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
        write([make(tmp_path, "full")], tmp_path)


def test_settings_are_split_into_shared_and_different():
    found = compare([{"a": {"b": 1}, "c": "x"}, {"a": {"b": 1}, "c": "y", "d": [1, 2]}])
    assert found.shared == {"a.b": "1"}
    assert found.different == {"c": ("x", "y"), "d": ("—", "[1, 2]")}


def test_long_text_says_what_is_left_out():
    assert printable("abcdef", 4) == "abcd … (2 more letters)"


def test_report_never_imports_torch():
    heavy = "{'torch', 'transformers', 'matplotlib'}"
    check = f"import sys, modicum.report, modicum.stats; assert not {heavy} & set(sys.modules)"
    path = {"PYTHONPATH": str(Path(figures.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", check], env=path, check=True)
