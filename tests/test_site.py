"""The documentation as a site: strict links, every page in its order, a search without a network."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Browser
from modicum import cli, updates

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FIRST = ["first_run", "your_data", "your_reward", "which_update", "your_gpus", "from_trl", "wrong"]
slow = pytest.mark.slow


def made() -> Any:
    """docs/generated.py, which no package holds."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries() -> list[str]:
    """What the index lists, in its order."""
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.S)
    lines = [line for tree in trees for line in tree.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_the_index_lists_every_page_once() -> None:
    listed = entries()
    assert listed[: len(FIRST)] == FIRST
    assert len(set(listed)) == len(listed)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    pages |= {f"../studies/{path.parent.name}/README" for path in ROOT.glob("studies/*/README.md")}
    pages |= {f"../{name}" for name in ("CONTRIBUTING", "CHANGELOG", "LOG")}
    pages |= {f"reference/{name.removesuffix('.md')}" for name in made().pages()}
    assert set(listed) == pages


def test_pages_from_the_code_are_those_of_the_code(tmp_path: Path) -> None:
    generated = made()
    (tmp_path / "gone.md").write_text("of a version before")
    names = generated.write(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    commands = (tmp_path / "commands.md").read_text()
    assert all(f"## modicum {name}\n" in commands for name in cli.COMMANDS)
    assert "--learning-rate X" in commands and "usage: modicum train" in commands
    assert "| `learning_rate` | `auto` |" in (tmp_path / "settings.md").read_text()
    assert "| `lr` | `learning_rate` |" in (tmp_path / "names.md").read_text()
    listed = re.findall(r"^## `(\w+)`$", (tmp_path / "updates.md").read_text(), re.M)
    assert listed == list(updates.UPDATES)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason="needs modicum[docs] (make docs)")
    out = tmp_path_factory.mktemp("site") / "html"
    command = ["-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-E", "-a", "-c", str(DOCS)]
    done = subprocess.run(
        [sys.executable, *command, str(ROOT), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@slow
def test_the_site_is_whole_and_loads_nothing(site: Path) -> None:
    assert (site / "searchindex.js").is_file()
    assert 'url=docs/index.html"' in (site / "index.html").read_text()
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]* src=\"(?:https?:)?//|<link[^>]* href=\"(?:https?:)?//"
    )
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text(encoding="utf-8")), page
    assert "Train a model with GRPO" in (site / "docs/reference/python.html").read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


# What somebody types who has only the site, and where one of the first results must lead.
QUESTIONS = {
    "chat template": "docs/models.html#chat-templates",
    "continue adapter": "docs/questions.html",
    "two GPUs": "docs/parallel.html",
    "learning rate": "docs/rates.html",
    "how long": "docs/questions.html",
    "policy/kl": "docs/questions.html",
    "add reward": "docs/questions.html",
    "stop early": "docs/questions.html#how-do-i-stop-early",
    "wandb": "docs/trackers.html",
    "continue in TRL": "docs/questions.html#how-do-i-continue-in-trl",
    "out of memory": "docs/wrong.html#out-of-memory",
    "reward stays at 0": "docs/wrong.html#the-reward-stays-at-0",
    "cite": "docs/questions.html",
    "curriculum": "docs/questions.html",
    "critic": "docs/objectives.html",
    "learned reward": "docs/learned_reward.html",
    "several GPUs": "docs/parallel.html",
    "vLLM": "docs/vllm.html",
    "NF4": "docs/memory.html",
    "probe": "docs/rates.html",
    "launcher": "docs/questions.html",
    "SLURM": "docs/launchers.html",
    "difficulty": "docs/curricula.html",
    "from Python": "docs/python.html",
    "export model": "docs/questions.html",
    "collapse": "docs/wrong.html",
    "model card": "docs/export.html",
    "init-adapter": "docs/export.html",
}
FOUND = "document.querySelectorAll('#search-results ul.search li > a')"


def results(browser: Browser, site: Path, query: str) -> list[str]:
    """Where the first results of a query lead."""
    place = f"{(site / 'search.html').resolve().as_uri()}?q={urllib.parse.quote_plus(query)}"
    browser.send("Page.navigate", url=place)
    for _ in range(100):
        time.sleep(0.1)
        done = browser.run("document.querySelector('#search-results .search-summary')?.textContent")
        if done and "found" in done:
            break
    links = browser.run(f"[...{FOUND}].slice(0, 5).map(a => a.getAttribute('href'))")
    return [re.sub(r"\?[^#]*", "", link) for link in links]


@slow
@pytest.mark.parametrize(("query", "place"), QUESTIONS.items(), ids=list(QUESTIONS))
def test_a_question_is_found(browser: Browser, site: Path, query: str, place: str) -> None:
    assert place in results(browser, site, query)


@slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "page", ["docs/index.html", "docs/updates.html", "docs/reference/commands.html"]
)
def test_a_page_asks_nothing_of_a_network(
    browser: Browser, site: Path, page: str, width: int
) -> None:
    browser.load(site / page, width=width)
    assert browser.messages == []
    assert [r for r in browser.requests if not r.startswith(("file:", "data:"))] == []
    assert browser.run("document.documentElement.scrollWidth") <= width
