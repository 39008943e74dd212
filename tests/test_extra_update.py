"""An update is one file and one row: `extra_update` works everywhere, and no place knows it.

Nothing here or in the package may name its class beyond its row: what fails needs another place.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

import fake_study
import test_updates as contract
from conftest import random_model
from extra_update import ROW
from modicum import cli, plan, updates
from modicum.config import Held, Optimizer, Sampling, Steps, TrainConfig
from modicum.plan import hardware, overall
from modicum.plan.memory import Subject
from modicum.plan.shapes import Lengths
from modicum.report import page
from modicum.report.study import read
from modicum.results import ArmResult
from modicum.study import analysis, design
from modicum.study.cells import check_arms
from modicum.training import checkpoint
from modicum.training.loop import train
from modicum.updates.preview import preview
from rows import IDS

pytestmark = pytest.mark.usefixtures("no_pdf")
(MEMBER,) = ROW.values()
USUAL, PLACED = MEMBER.examples
# (out + in) of the seven linear layers of the tiny base's six: numbers of one product of rank 1.
NUMBERS = 6 * (2 * (128 + 128) + 2 * (64 + 128) + 3 * (288 + 128))
CONTRACT = [
    check
    for name, check in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(check).parameters) == ["trained"]
]


@pytest.fixture(scope="module", autouse=True)
def row() -> Iterator[None]:
    """The row, as `modicum.updates` would have it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, member in ROW.items():
            patch.setitem(updates.UPDATES, name, member)
        yield


@pytest.fixture(
    scope="module",
    params=[("tiny", USUAL), ("llama", USUAL), ("llama", PLACED), ("qwen3", USUAL)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def trained(
    request: pytest.FixtureRequest,
    row: None,
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> contract.Trained:
    return contract.take_first_steps(*request.param, folders, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_contract_holds(check: Callable[[Any], None], trained: contract.Trained) -> None:
    check(trained)


def test_its_text_comes_back() -> None:
    assert len(CONTRACT) == 8
    for text in MEMBER.examples:
        assert str(updates.parse(text)) == text


def test_it_is_listed(capsys: Any) -> None:
    assert cli.run(["updates", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["loha"] == {
        "name": "loha",
        "signature": "loha(rank=4, every=2)",
        "summary": "The change of a weight is the product, number by number, of two of low rank.",
        "kind": "adapters",
        "default": "loha(rank=2)",
    }


def test_the_preview_knows_what_it_costs() -> None:
    shown = preview(updates.parse(USUAL), "tiny")
    assert shown.ever == 2 * 2 * NUMBERS == 51_456
    assert shown.parameters == 2 * NUMBERS
    assert shown.optimizer_bytes == 8 * shown.parameters
    assert shown.notes == []


def test_the_previewed_share_of_backward_is_measured(folders: dict[str, Path]) -> None:
    """What grows with the tokens, so without making the matrix from its factors."""

    def work(text: str) -> int:
        counts = []
        for copies in (1, 2):
            model = random_model("qwen2", attn_implementation="eager")
            prepared = updates.parse(text).apply(model, 0)
            out = prepared.model(input_ids=IDS.repeat(copies, 1)).logits.sum()
            with FlopCounterMode(display=False) as counter:
                out.backward()
            found = counter.get_flop_counts()["Global"]
            counts.append(
                sum(n for op, n in found.items() if str(op).split(".")[-1] in ("mm", "addmm"))
            )
        return counts[1] - counts[0]

    for text in MEMBER.examples:
        share = preview(updates.parse(text), str(folders["qwen2"])).backward_share
        assert work(text) / work("full") == pytest.approx(share, rel=1e-6)


def test_the_planner_knows_what_it_costs() -> None:
    config = replace(
        TrainConfig(),
        update=USUAL,
        objective="grpo(kl=0.04)",
        steps=1,
        sampling=Sampling(max_tokens=16),
        batch=Steps(prompts_per_step=4, group_size=4, micro_batch=64, rollout_batch=512),
        optimizer=Optimizer(learning_rate=1e-3),
        evaluation=Held(eval_problems=0),
    )
    made = plan.make(config, hardware.parse("7 GB"), Lengths(12, 12, 16, 16))
    assert made.trained == 2 * NUMBERS
    parts = made.memory.largest
    assert parts["optimizer"] == 8 * 2 * NUMBERS
    assert parts["gradients"] == parts["schedule"] == 4 * 2 * NUMBERS
    assert "reference" not in parts and "step" not in parts
    # The second matrix of the weight's shape has a product forward and up to two backward.
    other = replace(config, update="lora(rank=2)")
    bare, _ = overall._flops(other, Subject.of(other), made.lengths)
    assert made.flops.sampling > 1.5 * bare.sampling
    assert made.flops.training > 1.5 * bare.training


def test_it_says_what_its_reference_is() -> None:
    prepared = updates.parse(PLACED).apply(random_model("llama"), 0)
    assert prepared.reference_is_bare and prepared.trunk_is_reference
    assert prepared.reference_bytes(kl=True) == 0


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_run_of_it_is_exported_and_reported(quick: Any, tmp_path: Path, capsys: Any) -> None:
    train(replace(quick, update=USUAL, steps=2))
    for form in ("adapter", "merged"):
        out = tmp_path / form
        assert cli.run(["export", quick.out, "--format", form, "--out", str(out), "--json"]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert said["largest_logit_difference"] < 1e-4
    assert "adapter_config.json" in {path.name for path in (tmp_path / "adapter").iterdir()}
    resumed = checkpoint.reload(Path(quick.out)).prepared
    assert resumed.trainable.keys() == {n for n in resumed.trainable if ".hada_w" in n}
    page_of_run = tmp_path / "report.html"
    assert cli.run(["report", quick.out, "--out", str(page_of_run)]) == 0
    assert USUAL in page_of_run.read_text()


def test_a_study_of_it_has_its_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"unit": "steps", "amount": 2}
    tables = {"question": "?", "arms": ["full", USUAL], "seeds": [0], "budget": budget}
    study = design.parse(tables, "here")
    check_arms(study)
    _, arm = design.arms(study)[:2]
    assert analysis.kind_of(arm) == "adapters"
    assert analysis.kind_of(design.PlannedArm("x", {"update": "gone(1)"})) == ""
    assert analysis.kind_of(design.PlannedArm("x", {"objective": "dapo"})) == ""
    shown = (fake_study.ARMS[0], replace(fake_study.ARMS[5], name=USUAL))
    monkeypatch.setattr(fake_study, "ARMS", shown)
    fake_study.build(tmp_path, arms=2)
    found = read.load(tmp_path)
    look = read.family(found.analysis, found.analysis.arms[1])
    assert (look.name, look.marker) == ("adapters", read.KINDS["adapters"].marker)
    assert read.family(found.analysis, ArmResult("a", "a", "")).name == "other settings"
    assert USUAL in page.write([tmp_path], tmp_path / "report.html").read_text()
