"""modicum extrapolate: the line through a run's checkpoints, by hand and in a run; its errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import cli
from modicum.config import Records
from modicum.parts import RunParts, past_config
from modicum.runs import checkpoints
from modicum.training.checkpoint import reload
from modicum.training.extrapolation import Extrapolation, straightness
from modicum.training.loop import train
from modicum.types import UserError


@pytest.mark.parametrize(
    ("changes", "r2", "share"),
    [
        ([[0, 0], [1, 2], [2, 4]], 1.0, 1.0),
        ([[0], [1], [1]], 0.75, 1.0),
        ([[0, 0], [1, 0], [0, 1]], 0.375, 0.5),
    ],
)
def test_straightness_by_hand(changes: Any, r2: float, share: float) -> None:
    moved = torch.tensor(changes, dtype=torch.float64)
    found = straightness([0, 10, 20], moved @ moved.T)
    assert found == {"r2": pytest.approx(r2), "first_direction": pytest.approx(share)}


def test_two_points_are_always_on_a_line() -> None:
    nothing = {"r2": None, "first_direction": None}
    assert straightness([0, 5], torch.eye(2).double()) == nothing
    assert straightness([0, 5, 9], torch.zeros(3, 3).double()) == nothing


@pytest.fixture
def folder(quick: Any) -> Path:
    records = Records(checkpoint_every=1, keep_checkpoints=3, anatomy=False)
    optimizer = replace(quick.optimizer, learning_rate=1e-2)
    train(replace(quick, update="last(1)", steps=4, records=records, optimizer=optimizer))
    return Path(quick.out)


def test_the_policy_lies_on_the_line(folder: Path) -> None:
    saved = {int(path.name[5:]): path for path in checkpoints(folder)}
    assert sorted(saved) == [2, 3, 4]
    config = past_config(folder)

    def weights(session: Any) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in session.prepared.trainable.values()])

    at = {n: weights(reload(folder, config, at=path)) for n, path in saved.items()}
    line = Extrapolation(saved, 2, 4)
    line.k = 3.0
    found = weights(line(folder, config, RunParts()))
    torch.testing.assert_close(found, at[4] + 3 * (at[4] - at[2]))
    line.k = -1.0
    torch.testing.assert_close(weights(line(folder, config, RunParts())), at[2])
    assert list(line.thetas) == [0, 2, 3, 4]
    whole = line.straight()[""]
    assert 0 < whole["r2"] <= 1 and 0.25 <= whole["first_direction"] <= 1  # type: ignore[operator]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["extrapolate", str(folder), "--problems", "2", "--samples", "1"]
    assert cli.run([*common, "--k", "0", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["from"], found["to"], found["points"]) == (3, 4, [0, 2, 3, 4])
    assert [(one["k"], one["step"]) for one in found["evaluations"]] == [(0, 4), (2, 6)]
    assert len(found["tensors"]) == 12
    assert cli.run([*common, "--from", "0", "--budget", "10"]) == 0
    assert "as of step 10: accuracy" in capsys.readouterr().out
    for wrong, words in [
        (["--from", "1"], "step 1 is no checkpoint before 4 .*2, 3, 4.*--keep-checkpoints"),
        (["--from", "4"], "step 4 is no checkpoint before 4"),
        (["--to", "2"], "no checkpoint before step 2, and a line needs two; .*--keep-checkpoints"),
        (["--to", "9"], "has no checkpoint of b"),
        (["--budget", "4"], "not beyond step 4"),
        (["--k", "1", "--budget", "9"], "--budget: not allowed with argument --k"),
        (["--k", "nan"], "finite"),
        (["--k", "one"], "invalid float"),
    ]:
        with pytest.raises(UserError, match=words):
            cli.run([*common, *wrong])


def test_the_check_in_the_docs_runs() -> None:
    page = (Path(__file__).parent.parent / "docs/rivals.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, {})
