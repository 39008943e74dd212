"""Prompts that are too long are found before a run begins: refused, or left out everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modicum import cli, curricula, tasks
from modicum.config import Held, Sampling, TrainConfig, to_toml
from modicum.evaluate import held_out
from modicum.models.load import load
from modicum.tasks import examples
from modicum.training import folder as run_folder
from modicum.training import session as sessions
from modicum.types import SPLITS, UserError

LONG = "What is " + "1+" * 700 + "1?"


class Positions:
    """A model's config."""

    max_position_embeddings = 300


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load("tiny").tokenizer


@pytest.fixture
def expression(tmp_path: Path) -> str:
    """40 short questions and three long ones, one of which goes to train."""
    rows = [{"question": f"What is {i}+{i}?", "answer": 2 * i, "hard": i} for i in range(40)]
    rows[30:30] = [
        {"question": LONG.replace("1?", f"{i}?"), "answer": i, "hard": 0} for i in range(8)
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"file({str(path)!r}, difficulty=hard)"


def test_long_prompts_are_refused_with_the_ways_out(expression: str, tokenizer: Any) -> None:
    task = tasks.parse(expression)
    problems = examples.whole(task, *SPLITS)
    with pytest.raises(UserError) as error:
        examples.Sizes(tokenizer, Sampling(max_tokens=80), (), None).settle(task, problems)
    said = str(error.value)
    assert "prompts of more than 512 tokens (max_prompt_tokens): 8 of 48, file/long.jsonl/3" in said
    assert ", ...; the longest, of file/long.jsonl/3" in said and "\n" not in said
    longest = max(len(lengths_of(p, tokenizer)) for p in problems)
    assert (
        f"has {longest}; --max-prompt-tokens {longest} takes them; --long-prompts skip leaves them out"
        in said
    )
    enough = Sampling(max_prompt_tokens=longest, max_tokens=80)
    assert examples.Sizes(tokenizer, enough, (), None).settle(task, problems) is task
    with pytest.raises(UserError, match=r"than 220 tokens \(of 300 positions, beside max_tokens\)"):
        examples.Sizes(tokenizer, enough, (), Positions()).settle(task, problems)
    endless = tasks.parse("arithmetic")
    assert (
        examples.Sizes(tokenizer, Sampling(max_prompt_tokens=1), (), None).settle(endless, [])
        is endless
    )


def lengths_of(problem: Any, tokenizer: Any) -> tuple[int, ...]:
    from modicum.tasks.prompts import encode

    return encode(problem, tokenizer, Sampling(max_prompt_tokens=10**6))


def test_long_prompts_are_left_out_of_every_split(expression: str, tokenizer: Any) -> None:
    task, sampling = tasks.parse(expression), Sampling(long_prompts="skip")
    short = examples.Sizes(tokenizer, sampling, (), None).settle(task, [])
    assert sum(short.size(split) or 0 for split in SPLITS) == 40
    assert all(len(p.question) < 30 for p in examples.whole(short, *SPLITS))
    assert tasks.notes(short)[0].endswith("they are left out") and tasks.notes(task) == ()
    assert str(short) == str(task) and tasks.fingerprint(short) == tasks.fingerprint(task)
    order = curricula.parse("easy_to_hard(stages=2)").begin(short, 0)
    assert all(p.question != LONG for p in order.next(80, 0.9))
    assert examples.Sizes(tokenizer, sampling, (), None).settle(short, []) is short
    held = held_out(short, "test", 256)
    assert held and all(len(p.question) < 30 for p in held)


def test_a_run_finds_them_before_it_begins(expression: str, bare: TrainConfig) -> None:
    config = replace(bare, task=expression)
    with pytest.raises(UserError, match=r"more than 248 tokens \(of 256 positions"):
        sessions.prepare(config)
    config = replace(config, sampling=replace(config.sampling, long_prompts="skip"))
    session = sessions.prepare(config)
    assert any("they are left out" in note for note in sessions.notes(session))
    drawn = session.order.next(session.task.size("train") or 0, 0.0)
    assert len(drawn) > 20 and all(len(p.question) < 30 for p in drawn)


def test_a_split_without_problems_is_told_before_the_model_is_loaded(
    tmp_path: Path, bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "What is 1+1?", "answer": 2}')
    config = replace(bare, task=f"file({str(tmp_path / 'a.jsonl')!r})", evaluation=Held(4))
    monkeypatch.setattr(sessions, "load", None)
    with pytest.raises(
        UserError, match=r"no problem for the split 'test': .*set --eval-problems=0"
    ):
        sessions.prepare(config)


def test_a_resumed_run_keeps_the_limit_where_it_says_which_problems_there_are(
    tmp_path: Path,
) -> None:
    for long_prompts in ("refuse", "skip"):
        past = replace(TrainConfig(), sampling=Sampling(long_prompts=long_prompts))  # type: ignore[arg-type]
        (tmp_path / "config.toml").write_text(to_toml(past))
        now = replace(past, sampling=replace(past.sampling, max_prompt_tokens=900))
        if long_prompts == "refuse":
            changes, _ = run_folder._changes(tmp_path, now)
            assert changes == {"sampling.max_prompt_tokens": (512, 900)}
        else:
            with pytest.raises(UserError, match=r"max_prompt_tokens = 512\), not .* = 900; it can"):
                run_folder._changes(tmp_path, now)


def test_check_says_which_prompts_are_too_long(
    expression: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["tasks", expression, "--check"]) == 0
    capsys.readouterr()
    assert cli.run(["tasks", expression, "--check", "--model", "tiny"]) == 1
    assert "(max_prompt_tokens): 8 of 48, file/long.jsonl/" in capsys.readouterr().out
    options = ["--check", "--model", "tiny", "--max-prompt-tokens", "20000", "--json"]
    assert cli.run(["tasks", expression, *options]) == 1, "tiny has no positions for them"
    assert len(json.loads(capsys.readouterr().out)["long"]) == 8
    assert cli.run(["tasks", "arithmetic", "--check", "--model", "tiny"]) == 0
    assert "none of 200 prompts has more than" in capsys.readouterr().out
