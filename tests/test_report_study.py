"""modicum.report.study: reading a study folder, its figures, page and Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

import fake_study
from modicum import updates
from modicum.logged import METRICS
from modicum.report import document, page, words
from modicum.report.figures import accuracy, forest, frontier
from modicum.report.figures import arm_curves as curves
from modicum.report.figures.curves import TRAINED, line
from modicum.report.study import read
from modicum.report.study.document import document as document_of
from modicum.report.study.document import table
from modicum.report.study.read import StudyRecord
from modicum.report.style import styled
from modicum.results import Analysis, ArmResult
from modicum.types import UserError

KL = "policy/kl"
HOSTILE = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'
WITHOUT_RUNS = {
    *("differences", "accuracy-parameters", "accuracy-time", "accuracy-memory"),
    *("difficulty", "tuning"),
}
WITH_RUNS = WITHOUT_RUNS | {
    *("learning-together", "learning-steps", "learning-tokens", "learning-seconds"),
    *("signals", "changes"),
}


class Page(HTMLParser):
    """What a browser would load or run, the headings and the texts of the first cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.levels: list[int] = []
        self.row_heads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.scripts += tag == "script" and found.get("type") != "application/json"
        if tag in ("link", "img", "iframe", "object", "embed", "base"):
            self.loads.append(tag)
        self.loads += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if (name in ("src", "href") and tag != "a" and not (value or "").startswith("#"))
            or name.startswith("on")
        ]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "svg":
            self.images.append(found)
        if tag == "th" and found.get("scope") == "row":
            self.inside = tag
            self.row_heads.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.row_heads[-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its runs: a control, a good arm, a bad one, a placebo, a failed one."""
    made = tmp_path_factory.mktemp("study") / "fake"
    fake_study.build(made)
    file = made / "cells/final/last-1/seed-0/completions-trained.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    fake_study.write_lines(file, [line | {"completion": HOSTILE} for line in lines])
    return made


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyRecord:
    return read.load(folder)


@pytest.fixture(scope="module")
def written(folder: Path, no_pdf: None) -> Path:
    return page.write([folder])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """The analysis of seventeen arms."""
    made = tmp_path_factory.mktemp("study") / "large"
    return Analysis.from_json(fake_study.build(made, arms=17, seeds=5, runs=False), "large")


def arm_of(analysis: Analysis, name: str) -> ArmResult:
    return next(arm for arm in analysis.arms if arm.name == name)


def figures_of(study: StudyRecord) -> list[str]:
    """The names of the figures of a study's report."""
    return [figure.name for figure in document_of(study, "A study").blocks(document.Figure)]


# Page and Markdown -----------------------------------------------------------------------


def test_the_page_stands_alone_and_answers_first(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Page(text)
    assert found.loads == []
    assert found.scripts == 1
    assert len(text) < 1_500_000
    # No heading level is skipped.
    assert found.levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(found.levels))
    # Every figure, for both widths, says in words what it shows.
    assert len(found.images) == 2 * len(WITH_RUNS)
    assert all(image.get("role") == "img" and image.get("aria-label") for image in found.images)
    places = [
        text.index(words)
        for words in (
            "Which part of a small model is enough",
            "Two arms are not worse",
            'aria-label="Difference in accuracy',
            'aria-label="The arms, the best first"',
            "The arms in words",
            'aria-label="Accuracy against trained parameters',
            'aria-label="Learning curves',
            'aria-label="Accuracy on tuning problems',
            "<h2>What the models wrote",
            "<h2>How the numbers are made",
            "modicum study run studies/fake.toml",
        )
    ]
    assert places == sorted(places)


def test_the_table_has_the_best_first_placebo_and_failed_last(written: Path) -> None:
    heads = Page(written.read_text(encoding="utf-8")).row_heads[:5]
    assert heads == ["full", "last(1)", "bitfit", "random reward", "galore(rank=4)"]


def test_edges_failures_and_text_of_models_are_shown_as_they_are(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "1.6e−3 at\u00a0edge" in text
    assert "0, 3 failed" in text
    assert "seed 1: the loss was not finite at step 31" in text
    assert "&lt;script&gt;alert(" in text
    assert "<script>alert(" not in text
    # The same held-out problem from the base, the control and others, by a stated rule.
    assert "No text is selected by its outcome" in text
    assert text.count("&lt;answer&gt;1&lt;/answer&gt;") >= 1


def test_markdown_says_the_same_and_its_figures_exist(written: Path) -> None:
    text = written.with_suffix(".md").read_text(encoding="utf-8")
    linked = re.findall(r"\(<(figures/[^>]+)>\)", text)
    assert {Path(link).stem for link in linked} == WITH_RUNS
    assert all((written.parent / link).read_bytes()[:4] in (b"%PDF", b"<svg") for link in linked)
    assert {Path(link).suffix for link in linked} == {".svg", ".pdf"}
    for part in ("`last(1)`", "placebo: no gain", "0, 3 failed", "docs/statistics.md"):
        assert part in text
    # What a model wrote stays in its fence.
    assert HOSTILE in text
    assert text.index("```text") < text.index(HOSTILE)


def test_the_page_goes_where_it_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "draw", lambda figures: {})
    out = tmp_path / "deep" / "mine.html"
    assert page.write([folder], out, "My <study>") == out
    assert "<title>My &lt;study&gt;</title>" in out.read_text()
    assert out.with_suffix(".md").read_text().startswith("# My \\<study\\>\n")


# Reading ---------------------------------------------------------------------------------


def test_a_copy_without_runs_leaves_out_what_needs_them(folder: Path, tmp_path: Path) -> None:
    for name in ("study.toml", "analysis.json"):
        shutil.copy(folder / name, tmp_path)
    study = read.load(tmp_path)
    assert set(figures_of(study)) == WITHOUT_RUNS
    found = document_of(study, "A study")
    text = page.html(found, {})
    assert "The run folders of any arm are not here" in text
    assert 'id="written"' not in text
    assert 'id="training"' not in text
    assert "Settings" in page.markdown(found, "figures")
    # The arms' settings are known without the runs.
    (settings,) = [s for s in found.sections if s.id == "settings"]
    assert isinstance(settings.blocks[0], document.Table)
    assert settings.blocks[0].heads == ("arm", "update", "reward")


def test_curves_json_takes_the_place_of_runs(
    folder: Path, study: StudyRecord, tmp_path: Path
) -> None:
    for name in ("study.toml", "analysis.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "curves.json").write_text(
        json.dumps(read.compact(folder, read.load(folder).analysis))
    )
    copy = read.load(tmp_path)
    assert set(figures_of(copy)) == WITH_RUNS
    assert copy.runs.samples == study.runs.samples
    assert copy.runs.environment == {"python": "3.11.7", "versions": {"torch": "2.13.0"}} | {
        "cores": 2,
        "gpu": None,
    }
    for slug, found in study.curves.items():
        assert copy.curves[slug].anatomy == found.anatomy
        for seed, columns in found.seeds.items():
            for name, column in columns.items():
                np.testing.assert_array_equal(copy.curves[slug].seeds[seed][name], column)


def test_runs_are_preferred_to_a_copy(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    stale = read.compact(folder, read.load(folder).analysis)
    stale["arms"]["full"]["change_proof"] = "stale"
    stale["arms"]["bitfit"]["change_proof"] = "copied"
    (tmp_path / "s" / "curves.json").write_text(json.dumps(stale))
    shutil.rmtree(tmp_path / "s" / "cells" / "final" / "bitfit")
    found = read.load(tmp_path / "s").curves
    assert found["full"].change_proof.startswith("12 of 12")
    assert found["bitfit"].change_proof == "copied"


def test_a_copy_of_the_curves_is_small(tmp_path: Path) -> None:
    fake_study.build(tmp_path, arms=1, seeds=5, steps=100)
    # Fourteen arms of five seeds and a hundred steps.
    assert 14 * len(json.dumps(read.compact(tmp_path, read.load(tmp_path).analysis))) < 1_500_000


def test_columns_are_cumulative_and_thinned(study: StudyRecord, folder: Path) -> None:
    columns = study.curves["full"].seeds["0"]
    rows = [
        json.loads(line)
        for line in (folder / "cells/final/full/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    # 8 prompts of 8 completions a step.
    tokens = np.cumsum([64 * row["completions/length_mean"] for row in rows])
    np.testing.assert_allclose(columns["tokens"], tokens, rtol=1e-3)
    seconds = np.cumsum([row["time/step_seconds"] for row in rows])
    np.testing.assert_allclose(columns["seconds"], seconds, rtol=1e-3)
    np.testing.assert_array_equal(columns["step"], np.arange(1, 13))


def test_thin_gives_means_and_last_values_of_bins() -> None:
    values = np.array([1.0, 3.0, np.nan, 7.0, np.nan, np.nan])
    assert read.thin(values, points=3) == [2, 7, None]
    assert read.thin(np.arange(6.0), last=True, points=3) == [1, 3, 5]
    assert read.thin(np.array([0.123456]), points=3) == [0.1235]
    assert read.thin(np.empty(0)) == []


def test_the_samples_are_the_first_ones_of_the_first_problems(study: StudyRecord) -> None:
    first = study.runs.samples.problems[0]
    assert len(study.runs.samples.problems) == 5
    assert (first.question, first.gold) == ("What is 0-8-3-6?", "-17")
    assert list(first.texts) == ["", "full", "last-1", "bitfit"]  # no placebo
    assert first.texts[""].completion == "<answer>0</answer>"
    assert not first.texts[""].strict
    assert first.texts["full"].strict


def test_a_seed_that_failed_does_not_cut_the_curves(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    data = json.loads((folder / "analysis.json").read_text())
    del data["arms"][1]["by_seed"]["2"]
    (tmp_path / "s" / "analysis.json").write_text(json.dumps(data))
    assert list(read.load(tmp_path / "s").curves["last-1"].seeds) == ["0", "1"]
    data["arms"][1]["by_seed"] = {}
    (tmp_path / "s" / "analysis.json").write_text(json.dumps(data))
    assert list(read.load(tmp_path / "s").curves["last-1"].seeds) == ["0", "1", "2"]


def test_folders_outside_of_the_study_are_not_read(folder: Path, tmp_path: Path) -> None:
    analysis = json.loads((folder / "analysis.json").read_text())
    analysis["arms"][0]["folders"] = {"0": str(Path("..") / "outside")}
    shutil.copytree(folder / "cells/final/full/seed-0", tmp_path / "outside")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "analysis.json").write_text(json.dumps(analysis))
    assert read.load(tmp_path / "s").curves == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control": "none"}, "the control 'none' is not among the arms"),
        ({"margin": "two"}, "'margin' must be a number, not 'two'"),
        ({"arms": [{"name": "full"}]}, r"arms\[0\]: 'slug' is missing"),
        ({"base": {"mean": 0.1, "low": 0.0}}, "base: 'high' is missing"),
    ],
)
def test_a_broken_analysis_is_one_line(
    folder: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    data = json.loads((folder / "analysis.json").read_text()) | change
    (tmp_path / "analysis.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=words) as error:
        read.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "analysis.json" in str(error.value)


def test_a_study_that_is_not_analysed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not been analysed yet"):
        read.load(tmp_path)
    (tmp_path / "analysis.json").write_text("{")
    with pytest.raises(UserError, match=r"analysis.json:1: not JSON"):
        read.load(tmp_path)


# Order, families, words ------------------------------------------------------------------


def test_arms_are_ranked_by_difference_with_the_control_at_zero(large: Analysis) -> None:
    ranked = read.ranked(large)
    names = [arm.name for arm in ranked]
    assert names[-2:] == ["random reward", "galore(rank=4)"]
    gaps = [0.0 if a.name == "full" else a.difference.mean for a in ranked if a.verdict != "failed"]
    assert gaps[:-1] == sorted(gaps[:-1], reverse=True)
    before, after = names.index("full") - 1, names.index("full") + 1
    assert ranked[before].difference.mean > 0 > ranked[after].difference.mean


@pytest.mark.parametrize(
    ("update", "name"),
    [
        ("last(1) + parts(norm)", "layers"),
        ("parts(attention, mlp)", "parts of layers"),
        ("lora(rank=8) @ last(2)", "adapters"),
        ("sgd @ lora", "adapters"),
        ("lisa(layers=1, every=5)", "schedules, masks"),
        ("sparse(keep=0.05, by='fisher')", "schedules, masks"),
        ("galore(rank=4) @ last(2)", "optimizers"),
        ("full", "other settings"),
    ],
)
def test_the_family_of_an_update(update: str, name: str) -> None:
    found = ArmResult("a", "a", "", kind=updates.parse(update).kind)
    arms = (ArmResult("c", "c", "control"), found)
    assert read.family(Analysis("?", "c", arms), arms[1]).name == name


def test_backticks_mark_code() -> None:
    assert words.marked("train `last(1)` of it") == [
        (False, "train "),
        (True, "last(1)"),
        (False, " of it"),
    ]
    assert words.marked("a lone ` stays") == [(False, "a lone ` stays")]
    assert page.prose("a_b is `c_d`, see") == "a\\_b is `c_d`, see"


def test_the_table_sorts_by_numbers(large: Analysis) -> None:
    found = table("arms", "arm.txt", large)
    column = found.heads.index("difference, 90 %")
    texts = {row[0].text: row[column] for row in found.rows}
    cell, arm = texts["bitfit"], arm_of(large, "bitfit")
    assert arm.difference is not None
    assert cell.value == arm.difference.mean
    assert cell.text.replace("−", "-").startswith(f"{100 * arm.difference.mean:+.1f}\x20[")
    assert texts["full"].text == "—"


# Figures ---------------------------------------------------------------------------------


def draw(figure: document.Figure | None, narrow: bool = False) -> Any:
    assert figure is not None
    with styled():
        return figure.draw(narrow)


def lines_of(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_the_forest_plot_shows_margin_intervals_and_what_lies_beyond(large: Analysis) -> None:
    whole, axes = draw(forest.differences(large)).axes
    low, high = axes.get_xlim()
    shaded = next(p for p in axes.patches if isinstance(p, Rectangle))
    assert (shaded.get_x(), shaded.get_width()) == pytest.approx((-2, 4))
    # Losers by 20 points and the placebo do not press the others together; all are in the first.
    assert -12 < low < -6 and whole.get_xlim()[0] < -60
    assert not [line for line in whole.lines if line.get_marker() in "<>"]
    found = arm_of(large, "last(1)").difference
    assert found is not None
    drawn = [xs for xs, _ in lines_of(axes)]
    for ends in ((found.low90, found.high90), (found.low95, found.high95)):
        assert any(xs == pytest.approx([100 * e for e in ends]) for xs in drawn if len(xs) == 2)
    arrows = [line for line in axes.lines if line.get_marker() == "<"]
    beyond = [a for a in large.arms if a.difference and 100 * a.difference.low95 < low]
    assert len(arrows) == len(beyond) >= 3
    assert all(line.get_xdata() == [low] for line in arrows)
    # Every seed is a dot, at its difference from the control's seed of that number.
    control, arm = arm_of(large, "full").by_seed, arm_of(large, "last(1)")
    seeds = [100 * (arm.by_seed[seed] - control[seed]) for seed in arm.by_seed]
    assert any(xs == pytest.approx(seeds) for xs in drawn if len(xs) == 5)
    # Verdicts and numbers are text.
    texts = [text.get_text() for text in axes.texts]
    assert {"equivalent", "undecided", "placebo: no gain", "failed"} <= set(texts)
    assert high > 2


def test_levels_by_what_the_base_solves_stand_in_their_order() -> None:
    file = Path(__file__).parent.parent / "studies/which-layers/arithmetic/analysis.json"
    found = Analysis.from_json(json.loads(file.read_text()), "it")
    assert accuracy.levels(found) == {"0 %": 47, "to 50 %": 176, "above 50 %": 33}
    assert [round(100 * v) for v in dict(accuracy.rows(found))["full"].values()] == [90, 82, 78]


def test_costs_that_are_nearly_the_same_have_no_frontier() -> None:
    file = Path(__file__).parent.parent / "studies/which-layers/arithmetic/analysis.json"
    found = Analysis.from_json(json.loads(file.read_text()), "it")
    best = {
        axis.name: [p.name for p in frontier.points(frontier.of_arms(found), axis) if p.best]
        for axis in frontier.AXES
    }
    assert best["time"] == ["last(1)", "lora(rank=8)"] and best["memory"] == []


def test_one_panel_is_enough_where_it_shows_the_margin(large: Analysis) -> None:
    near = [arm for arm in large.arms if arm.difference and abs(arm.difference.mean) < 0.03]
    control = arm_of(large, "full")
    few = dataclasses.replace(large, arms=(control, *near))
    assert len(near) > 2 and len(forest.panels(few)) == 1 and len(forest.panels(large)) == 2


def test_the_forest_axis_covers_what_is_near_the_margin(large: Analysis) -> None:
    low, high = forest.reach(large)
    near = [a.difference for a in large.arms if a.verdict in ("equivalent", "not worse", "better")]
    assert all(low < d.low95 and d.high95 < high for d in near)


def test_the_frontier_is_what_no_cheaper_arm_beats(large: Analysis) -> None:
    for axis in frontier.AXES:
        found = frontier.points(frontier.of_arms(large), axis)
        assert len(found) == 16  # all but the failed arm
        rivals = [p for p in found if not p.placebo]
        for point in found:
            beaten = any(r.x <= point.x and r.y >= point.y and r is not point for r in rivals)
            assert point.best == (not beaten and not point.placebo), point.name


def test_labels_stay_apart_and_inside() -> None:
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in rng.uniform((3, 2), (5, 3), (14, 2))]
    sizes = [(0.3 + 0.1 * (i % 10), 0.13) for i in range(14)]
    chosen, far = frontier.arrange(points, sizes, (0, 0, 9, 4))
    assert frontier.overlap(chosen, chosen)[~np.eye(14, dtype=bool)].max() < 1e-9
    np.testing.assert_allclose(chosen[:, 2:] - chosen[:, :2], sizes)
    assert chosen[:, 0].min() >= 0 and chosen[:, 2].max() <= 9
    assert len(far) == 14 and not all(far)
    np.testing.assert_array_equal(chosen, frontier.arrange(points, sizes, (0, 0, 9, 4))[0])
    assert frontier.overlap((0, 0, 2, 2), [(1, 1, 3, 3), (2, 0, 3, 2)]).tolist() == [[1, 0]]


def test_a_line_is_the_mean_over_seeds_where_all_of_them_went() -> None:
    seeds = {
        "0": {"tokens": np.array([10.0, 20.0, 30.0, 40.0]), KL: np.array([0.0, 1.0, 2.0, 3.0])},
        "1": {"tokens": np.array([20.0, 30.0]), KL: np.array([5.0, 6.0])},
        "2": {"tokens": np.array([1.0, 2.0]), KL: np.array([np.nan, np.nan])},
    }
    found = line(seeds.values(), METRICS[KL], "tokens")
    assert found is not None
    assert (found.x[0], found.x[-1]) == (20, 30)
    np.testing.assert_allclose(found.low, (found.x - 10) / 10)
    np.testing.assert_allclose(found.high, found.x / 10 + 3)
    np.testing.assert_allclose(found.mean, (found.low + found.high) / 2)
    assert line([seeds["2"]], METRICS[KL], "tokens") is None


def test_evaluations_during_training_are_placed_by_their_step() -> None:
    columns = {"step": np.array([1.0, 2.0, 3.0, 4.0]), "tokens": np.array([10.0, 20, 30, 40])}
    found = read.ArmCurves(
        {"0": columns, "1": columns},
        {"0": ((1.0, 0.4), (2.0, 0.5), (3.0, 0.9)), "1": ((1.0, 0.6), (3.0, 0.9))},
    )
    # Only step 1 was evaluated by both before the end; two steps were done by then.
    assert curves.between(found, "tokens") == ([20.0], [50.0])


def test_learning_curves_have_a_panel_an_arm_with_the_control_behind(study: StudyRecord) -> None:
    together, panels, *_ = curves.figures(study)
    assert [line.get_gid() for line in draw(together).axes[0].lines if line.get_gid()] == [
        *("line:full", "line:last(1)", "line:bitfit")
    ]
    figure = draw(panels)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["full", "last(1)", "bitfit", "random reward"]
    control = line(study.curves["full"].seeds.values(), TRAINED, "tokens")
    assert control is not None
    for axes in figure.axes:
        assert any(xs == pytest.approx(list(control.x)) for xs, _ in lines_of(axes))
    # That arm's runs have another reward: accuracy was not logged.
    assert [text.get_text() for text in figure.axes[3].texts] == ["not logged"]
    names = figures_of(study)
    # The budget counts tokens.
    assert names.index("learning-tokens") < names.index("learning-steps")


def test_metrics_that_never_move_are_said_in_words(study: StudyRecord) -> None:
    moving, still, few = curves.gather(study)
    assert still == ["clip share (0)"]
    # The placebo alone is paid by chance: no column for it.
    assert few == ["reward term random (random reward)"]
    assert [metric.key for metric in moving][:3] == [
        "reward/mean",
        "reward/accuracy",
        "reward/format",
    ]
    lines = next(found for m, found in moving.items() if m.key == "completions/truncated")
    high = max(np.nanmax(c["completions/truncated"]) for c in study.curves["full"].seeds.values())
    highest = max(found.mean.max() for found in lines.values())
    assert highest == pytest.approx(100 * high, rel=0.2)


def test_tuning_marks_the_chosen_rate_the_edge_and_the_failed(large: Analysis) -> None:
    figure = draw(curves.tuning(large))
    panels = dict(zip([a.name for a in curves.tuned(large)], figure.axes, strict=True))
    edges = {n for n, axes in panels.items() if any("edge" in t.get_text() for t in axes.texts)}
    assert edges == {"bitfit", "lora(rank=8)"}
    ringed = [line for line in panels["full"].lines if line.get_markersize() == 7]
    assert [list(line.get_xdata()) for line in ringed] == [[4e-4]]
    crosses = [line for line in panels["galore(rank=4)"].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[1.6e-3]]
    assert curves.ticks([2e-5, 6e-4, 1.8e-2]) == pytest.approx([2e-5, 1e-3, 1.8e-2])
    assert words.rate(6.67e-5) == "6.7e−5"
    assert words.rate(1e-3) == "1e−3"


def test_difficulties_are_in_the_order_of_their_numbers(large: Analysis) -> None:
    data = {"name": "full", "slug": "full", "verdict": "control"}
    levels = [{"level": name, "problems": 3, "accuracy": 0.5} for name in ("10", "9.5", "x", "2")]
    found = Analysis.from_json(
        {"question": "?", "control": "full", "arms": [data | {"difficulty": levels}]}, ""
    )
    assert list(accuracy.levels(found)) == ["2", "9.5", "10", "x"]
    # An arm of which no run finished has the levels and no accuracy.
    none = [{"level": "2", "problems": 3, "accuracy": None, "base": 0.5}]
    failed = Analysis.from_json(
        {"question": "?", "control": "full", "arms": [data | {"difficulty": none}]}, ""
    )
    assert accuracy.rows(failed) == [("base", {"2": 0.5}), ("full", {})]
    assert [name for name, _ in accuracy.rows(large)][:2] == ["base", "lora(rank=8)"]


def test_a_study_of_the_control_alone_has_no_comparison(tmp_path: Path) -> None:
    fake_study.build(tmp_path, arms=1, seeds=1, steps=1)
    study = read.load(tmp_path)
    names = set(figures_of(study))
    assert "differences" not in names
    assert "accuracy-time" not in names
    draw(curves.figures(study)[0], narrow=True)


@pytest.mark.parametrize(
    ("edges", "most", "said"),
    [
        ([], 2, "Of two tries the better one says nothing of rates outside."),
        ([], 5, "No best rate lies at the edge of its grid."),
        (["full"], 5, "At the edge of its grid, so that a better rate may lie outside: full."),
    ],
)
def test_what_is_said_of_the_edge_of_a_grid(edges: list[str], most: int, said: str) -> None:
    assert words.say("at_edge", edges=edges, most=most) == said
