"""The docs name what exists: metrics, members of the kinds, commands."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from modicum import cli, curricula, logged, objectives, rewards, runs, tasks, updates
from modicum.objectives import corrections
from modicum.results import RunResult
from modicum.study import launchers
from modicum.training.loop import train

ROOT = Path(__file__).resolve().parent.parent


def test_every_metric_is_explained(quick: Any, tmp_path: Path) -> None:
    problems = [{"question": f"{n} + {n}?", "answer": 2 * n, "level": n} for n in range(60)]
    file = tmp_path / "problems.jsonl"
    file.write_text(runs.to_lines(problems))
    config = replace(quick, objective="grpo(kl=0.01)", steps=3, update="last(1)")
    task = f"file({str(file)!r}, difficulty='level')"
    config = replace(config, task=task, curriculum="easy_to_hard(stages=2)")
    config = replace(config, batch=replace(config.batch, groups="filter"))
    train(config)
    lines = runs.read_lines(Path(config.out) / "metrics.jsonl")
    seen = {key for line in lines for key in line if key != "reward/digits"}
    explained = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs/metrics.md").read_text(), re.M))
    assert seen <= explained
    missing = {"reward/TERM", "user/NAME", "update/arrived", "kept/accuracy"}
    missing |= {f"gold/{n}" for n in ("strict", "lenient", "proxy", "auc", "spread", "kl")}
    elsewhere = {key for key in explained if key.startswith(("sampler/", "sync/", "time/sync_"))}
    critics = {key for key in explained if "critic" in key}
    assert explained - seen == missing | critics | elsewhere, "an fp32 run rounds nothing"
    # What the run ends with is typed, too.
    written = runs.read_object(Path(config.out) / "result.json")
    assert set(written) == {item.name for item in fields(RunResult)}


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    lines = (ROOT / "docs/metrics.md").read_text().splitlines()
    for metric in logged.METRICS.values():
        unit = f"{metric.unit} |".lstrip()
        assert f"| `{metric.key}` | {metric.text} | {unit}" in lines
        assert metric.title
    assert len(logged.METRICS) == 72
    clipped = logged.METRICS["policy/clip_fraction"]
    assert (clipped.title, clipped.shown, clipped.factor) == ("Clip share", "tokens (%)", 100)
    term = logged.metric_of("reward/format")
    assert (term.title, term.words, term.factor) == (
        *("Reward term format", "reward term format"),
        1,
    )
    assert logged.METRICS["policy/kl"].words == "KL from the reference"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/updates.md", updates.UPDATES),
        ("docs/rewards.md", rewards.REWARDS),
        ("docs/tasks.md", tasks.TASKS),
        ("docs/commands.md", cli.COMMANDS),
        ("docs/method.md", objectives.OBJECTIVES),
        ("docs/objectives.md", corrections.CORRECTIONS),
        ("docs/curricula.md", curricula.CURRICULA),
        ("docs/launchers.md", launchers.LAUNCHERS),
    ],
    ids=[
        "updates",
        "rewards",
        "tasks",
        "commands",
        "objectives",
        "corrections",
        "curricula",
        "launchers",
    ],
)
def test_every_member_is_documented(page: str, names: dict[str, Any]) -> None:
    text = (ROOT / page).read_text()
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_checks_of_curricula_run() -> None:
    text = (ROOT / "docs/curricula.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert found and all("assert " in check for check in found)
    for check in found:
        assert len(check.strip().splitlines()) <= 10
        exec(check, {})


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


def test_options_named_in_the_docs_exist(capsys: pytest.CaptureFixture[str]) -> None:
    # Of torchrun, and one that docs/from_trl.md shows to be answered.
    known = {"--version", "--nproc-per-node", "--lr"}
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit):
            cli.run([name, "--help"])
        known |= set(OPTION.findall(capsys.readouterr().out))
    # Of vLLM, whose servers docs/vllm.md starts.
    known |= {"--host", "--port", "--generation-config", "--logprobs-mode", "--enable-scale-out"}
    known |= {
        "--enable-lora",
        "--max-lora-rank",
        "--max-loras",
        "--lora-modules",
        "--chat-template",
        "--no-enable-chunked-prefill",
    }
    for script in [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]:
        known |= set(re.findall(r'add_argument\("(--[a-z-]+)', script.read_text()))
    text = "".join(p.read_text() for p in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    assert set(OPTION.findall(text)) <= known


def test_the_citation_is_of_this_version() -> None:
    """And has what CFF 1.2 asks for, and no more than a repository without an address knows."""
    import yaml

    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found["cff-version"], found["type"]) == ("1.2.0", "software")
    assert {"message", "title", "abstract", "keywords"} <= found.keys()
    assert found["authors"] == project["authors"] == [{"name": "The modicum contributors"}]
    assert (found["version"], found["license"]) == (project["version"], project["license"])


def test_the_readme_is_read_in_three_minutes() -> None:
    """At 150 words a minute read aloud, without code and tables; one figure, one table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|^\|.*?$|\]\([^)]*\)", " ", text, flags=re.S | re.M)
    assert len(prose.split()) <= 450
    assert len(re.findall(r"^!\[", text, re.M)) == 1 == len(re.findall(r"^\| ---", text, re.M))
    assert "make demo" in text and "It has not been run on a GPU yet." in text


def test_the_figure_of_the_readme_is_that_of_the_study() -> None:
    spec = importlib.util.spec_from_file_location("figure", ROOT / "scripts/readme_figure.py")
    assert spec and spec.loader
    figure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figure)
    study = json.loads(figure.STUDY.read_text(encoding="utf-8"))
    assert figure.OUT.read_text(encoding="utf-8") == figure.drawn(study)
