"""PPO's critic: vectors, where values are read, the order of a step, the gate, resume, costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import random_model
from helpers import metrics_of, tensors_of
from modicum import runs
from modicum.config import Compute, Optimizer, Sampling, Steps, TrainConfig
from modicum.export import export_run
from modicum.objectives import Ppo, parse
from modicum.objectives.parts import explained, whitened
from modicum.plan import hardware, overall
from modicum.plan.shapes import Lengths
from modicum.training import hearing, step
from modicum.training.critic import Critic
from modicum.training.loop import Observer, train
from modicum.training.rollout import Rollout
from modicum.training.session import Session, prepare
from modicum.types import Batch, Completion, Group, Problem, Row, UserError
from test_plan_flops import counter

NAN = float("nan")
ONE = Problem("p", "q", "a")


def told(values: Sequence[float]) -> Completion:
    """A completion of so many tokens, with a critic's values."""
    length = len(values)
    return Completion(tuple(range(2, 2 + length)), (-1.0,) * length, "", True, values=tuple(values))


def ppo(text: str = "ppo") -> Ppo:
    made = parse(text)
    assert isinstance(made, Ppo)
    return made


# Vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ppo", [0.5, 0.4, 0.8]),
        ("ppo(lambda_=0.95)", [0.442, 0.36, 0.8]),
        ("ppo(lambda_=0)", [0.1, -0.4, 0.8]),
    ],
)
def test_advantages_of_one_completion(text: str, wanted: list[float]) -> None:
    """r = [0, 0, 1], V = [.5, .6, .2]; the end has value 0, and targets of lambda .95 are A + V."""
    values, goal = [0.5, 0.6, 0.2], ppo(text)
    groups = [Group(ONE, (1,), (told(values),))]
    returns = goal.returns(groups, torch.tensor([[1.0]]))
    assert returns.tolist() == [1, 1, 1]
    found = goal.credit(returns, groups)
    assert found.tolist() == pytest.approx(wanted, abs=1e-9)
    if "0.95" in text:
        summed = found + torch.tensor(values)
        assert summed.tolist() == pytest.approx([0.942, 0.96, 1.0], abs=1e-6)


@pytest.mark.parametrize(("length", "wanted"), [(10, 0), (20, 0), (100, 0.8), (1000, 0.98)])
def test_a_lambda_that_follows_the_length(length: int, wanted: float) -> None:
    assert ppo("ppo(adaptive=0.05)").decay(length) == pytest.approx(wanted)


def test_a_cut_completion_is_terminal_and_rows_do_not_run_into_each_other() -> None:
    cut = replace(told([0.5]), finished=False)
    groups = [Group(ONE, (1,), (cut, told([0.2, 0.1])))]
    goal = ppo("ppo(lambda_=0.5)")
    found = goal.credit(goal.returns(groups, torch.tensor([[0.0, 1.0]])), groups)
    # D = -.5 | .8, .9: A_2 = .9, A_1 = .8 - .9 + .45.
    assert found.tolist() == pytest.approx([-0.5, 0.35, 0.9])


def test_a_kl_in_the_reward_is_in_the_targets_too() -> None:
    """beta .1, k1 = [.2, -.1]: the returns are r less .01 and r plus .01."""
    row = replace(told([0.0, 0.0]), logprobs=(-1.0, -1.0), reference=(-1.2, -0.9))
    goal = ppo("ppo(kl=0.1, kl_form='k1_reward')")
    found = goal.returns([Group(ONE, (1,), (row,))], torch.tensor([[1.0]]))
    assert found.tolist() == pytest.approx([0.99, 1.01])


def test_advantages_are_whitened_over_all_tokens() -> None:
    """A = [.5, .4, .8 | -.5]: mean .3, sd (n-1) .55976; rows without a verdict are in neither."""
    groups = [Group(ONE, (1,), (told([0.5, 0.6, 0.2]), told([0.5]), told([9.0])))]
    found = ppo().row_advantages(groups, torch.tensor([[1.0, 0.0, NAN]]))[0]
    assert found[0] == pytest.approx((0.35729, 0.17865, 0.89324), abs=1e-4)
    assert found[1] == pytest.approx((-1.42919,), abs=1e-4)
    assert found[2] == (0.0,)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.8, 0.3, 0.1, 0.6, 0.2], 0.7167),
        ([0.4] * 5, 0.0),
        ([0.2, 0.7, 0.9, 0.4, 0.8], -1.2833),
    ],
)
def test_explained_variance(values: list[float], wanted: float) -> None:
    returns = torch.tensor([1.0, 0, 0, 1, 0])
    assert explained(torch.tensor(values), returns) == pytest.approx(wanted, abs=1e-4)
    assert explained(torch.tensor(values), torch.ones(5)) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ppo(on='head')", "on is 'head'"),
        ("ppo(critic='full', on='last')", "states of its own; leave on out"),
        ("ppo(adaptive=0.05, lambda_=0.9)", "adaptive makes lambda of the length"),
        ("ppo(lambda_=1.5)", "lambda_ must be at least 0 and at most 1"),
        ("ppo(passes=0)", "passes must be at least 1"),
        ("ppo(warmup=-1)", "warmup must be at least 0"),
        ("ppo(rate=0)", "rate must be above 0"),
    ],
)
def test_settings_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(text)
    with pytest.raises(UserError, match="on is 'x'"):
        Ppo(on="x")  # type: ignore[arg-type]


# Where values are read -------------------------------------------------------------------


def session_of(
    base: TrainConfig, objective: str, update: str = "last(1)", **changes: Any
) -> Session:
    return prepare(replace(base, objective=objective, update=update, **changes))


def speaking(critic: Critic) -> None:
    """What reads no longer says the same of all states."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        critic.model["reader"][-1].weight.normal_(generator=draw)


def rows_of(*lengths: int) -> list[Row]:
    draw = torch.Generator().manual_seed(5)
    rows = []
    for number, length in enumerate(lengths):
        tokens = tuple(torch.randint(2, 280, (length,), generator=draw).tolist())
        rows.append(Row((40, 41, 42 + number), tokens, (-1.0,) * length, 0.0, number))
    return rows


def values_of(critic: Critic, rows: Sequence[Row]) -> list[Tensor]:
    with torch.no_grad():
        found = critic.values(critic.read(rows))
    return list(found.split([len(row.tokens) for row in rows]))


def check_places(made: Session) -> None:
    """V_t is what the reader gives for the library's state at the token before t."""
    assert made.critic is not None
    speaking(made.critic)
    rows, reader = rows_of(1, 4, 7), made.critic.model["reader"]
    alone = [values_of(made.critic, [row])[0] for row in rows]
    for row, found, by_itself in zip(rows, values_of(made.critic, rows), alone, strict=True):
        whole = torch.tensor([row.prompt + row.tokens])
        depth, first = made.critic.counters.depth, len(row.prompt) - 1
        with torch.no_grad():
            out = made.policy.model(input_ids=whole, output_hidden_states=True, use_cache=False)
            states = out.hidden_states[-1 if depth is None else depth][0]
            here = states[first : first + len(row.tokens)]
            here = here / (here.square().mean(-1, keepdim=True) + 1.2e-7).sqrt()
            wanted = reader(here).squeeze(-1)
        assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
        assert found.tolist() == pytest.approx(by_itself.tolist(), abs=1e-4), "neighbours, padding"
        assert len(found) == len(row.tokens), "the first is of the prompt alone"


@pytest.mark.parametrize(
    ("objective", "engine"),
    [
        ("ppo", "split"),
        ("ppo(on='last')", "split"),
        ("ppo(on='last')", "library"),
        ("ppo(critic='mlp(8)')", "split"),
    ],
)
def test_values_are_read_where_their_tokens_are_predicted(
    bare: TrainConfig, objective: str, engine: Any
) -> None:
    check_places(session_of(bare, objective, compute=Compute(engine=engine)))


@pytest.mark.parametrize("fault", ["shifted", "the end", "the pad"])
def test_values_that_are_read_elsewhere_are_found(
    bare: TrainConfig, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: each value is that of the next token; all are the row's last; a pad is read."""
    objective, engine = ("ppo(on='last')", "library") if fault == "the pad" else ("ppo", "split")
    made = session_of(bare, objective, compute=Compute(engine=engine))  # type: ignore[arg-type]
    real = type(made.policy.scorer).pack

    def pack(self: Any, rows: Sequence[Row]) -> Any:
        found = real(self, rows)
        if fault == "the pad":
            ids, index = found
            return ids, torch.cat([index[:-1], index[-1:] * 0 + ids.numel() - 1])
        at = found.predicts
        return replace(found, predicts=at.roll(-1) if fault == "shifted" else at * 0 + at[-1])

    monkeypatch.setattr(type(made.policy.scorer), "pack", pack)
    with pytest.raises(AssertionError):
        check_places(made)


def test_kept_states_are_those_of_a_forward_and_nothing_below_is_run(
    bare: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = session_of(bare, "ppo", "last(1)")
    assert made.critic is not None and made.critic.counters.depth == 2
    speaking(made.critic)
    groups = step.sample_groups(made, 0)
    rows = [row for n in range(len(groups)) for row in hearing.unpaid(groups, n)]
    anew = values_of(made.critic, [replace(row, trunk=None) for row in rows])
    decoder = type(made.policy.scorer.decoder)  # type: ignore[attr-defined]
    monkeypatch.setattr(decoder, "run", lambda *_: pytest.fail("a layer was run"))
    for kept, found in zip(values_of(made.critic, rows), anew, strict=True):
        assert kept.tolist() == pytest.approx(found.tolist(), abs=1e-4)


# A step ----------------------------------------------------------------------------------


def rolled(made: Session, rewards: Sequence[Sequence[float]]) -> Rollout:
    """A rollout of the session's policy with these rewards."""
    groups = step.sample_groups(made, 0)
    return Rollout(groups, [], torch.tensor(rewards))


MIXED = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
CRITICS = ["head", "mlp(8)", "lora(rank=2)", "full"]


@pytest.mark.parametrize("critic", CRITICS)
def test_the_first_step_is_that_of_a_batch_baseline(bare: TrainConfig, critic: str) -> None:
    """The critic says the mean of everything: the gradients are those of reinforce_pp without KL."""
    found = []
    for objective in (f"ppo(critic='{critic}', warmup=0, gate=false)", "reinforce_pp(kl=0)"):
        made = session_of(bare, objective)
        rollout = rolled(made, MIXED)
        if made.critic is not None:
            rollout = hearing.valued(made, made.critic, rollout)
            values = [v for g in rollout.groups for c in g.completions for v in c.values]
            assert values == pytest.approx([3 / 8] * len(values))
        batch = hearing.batch_of(made, rollout.groups, rollout.rewards_PG, rollout.taken)
        step.backward(made, batch, {})
        gradients = made.optimization.gradients()
        found.append(torch.cat([gradients[name].flatten() for name in sorted(gradients)]))
    assert found[1].norm() > 1e-4
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-6


def check_order(made: Session, valued: Callable[..., Rollout] = hearing.valued) -> None:
    """The values that the policy gets are of before the critic has seen the rollout.

    What it learns from are the rewards, not yet whitened, of all rows with a verdict.
    """
    critic = made.critic
    assert critic is not None
    rewards = [[1.0, 0.0, NAN, 1.0], [0.0, 0.0, 1.0, 0.0]]
    rollout, learnt = rolled(made, rewards), list[tuple[int, list[float]]]()
    critic.begin(0.25)
    critic.counters.rollouts = 1
    speaking(critic)
    rows = [row for n in range(2) for row in hearing.unpaid(rollout.groups, n)]
    before, real = [values.tolist() for values in values_of(critic, rows)], critic.learn

    def learn(fitted: Any, count: int) -> float:
        learnt.extend((len(returns), returns.tolist()) for _, returns in fitted)
        return real(fitted, count)

    critic.learn = learn  # type: ignore[method-assign]
    told = valued(made, critic, rollout)
    found = [list(c.values) for g in told.groups for c in g.completions]
    for one, other in zip(found, before, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    wanted = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert [values for _, values in learnt] == [
        [r] * n for (n, _), r in zip(learnt, wanted * 2, strict=True)
    ]
    after = [values.tolist() for values in values_of(critic, rows)]
    assert (
        max(
            abs(a - b)
            for x, y in zip(after, before, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        > 1e-4
    )


@pytest.mark.parametrize("critic", CRITICS)
def test_values_are_of_before_the_critic_learns(bare: TrainConfig, critic: str) -> None:
    check_order(session_of(bare, f"ppo(critic='{critic}', gate=false)"))


@pytest.mark.parametrize("fault", ["after", "whitened"])
def test_a_wrong_order_is_found(bare: TrainConfig, fault: str) -> None:
    """Planted: values from after the fit; targets that were whitened."""
    made = session_of(bare, "ppo(gate=false)")

    def after(session: Session, critic: Critic, rollout: Rollout) -> Rollout:
        hearing.valued(session, critic, rollout)
        return hearing.valued(session, critic, rollout)

    def white(session: Session, critic: Critic, rollout: Rollout) -> Rollout:
        rewards = rollout.rewards_PG.flatten()
        known = whitened(rewards.nan_to_num(0.0), ~rewards.isnan()).view_as(rollout.rewards_PG)
        known = known.masked_fill(rollout.rewards_PG.isnan(), NAN)
        return hearing.valued(session, critic, rollout._replace(rewards_PG=known))

    with pytest.raises(AssertionError):
        check_order(made, after if fault == "after" else white)


@pytest.mark.parametrize("critic", ["head", "lora(rank=2)"])
def test_where_memory_runs_out_it_learns_in_smaller_parts(bare: TrainConfig, critic: str) -> None:
    found = []
    for most in (99, 3):
        made = session_of(bare, f"ppo(critic='{critic}')")
        made.resize(micro_batch=8)
        assert made.critic is not None
        real = made.critic.learn

        def learn(fitted: Any, count: int, most: int = most, real: Any = real) -> float:
            loss: float = real(fitted, count)
            if len(fitted) > most:  # when the gradient is there already
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

        made.critic.learn = learn  # type: ignore[method-assign]
        rollout = hearing.valued(made, made.critic, rolled(made, MIXED))
        values = [v for g in rollout.groups for c in g.completions for v in c.values]
        weights = {n: p.detach().clone() for n, p in made.critic.steps.prepared.trainable.items()}
        found.append((values, weights, made.critic.metrics["critic/loss"]))
        assert made.config.batch.micro_batch == (8 if most == 99 else 2)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], atol=2e-4, rtol=1e-3)


def test_values_that_explain_nothing_give_way_to_the_mean(bare: TrainConfig) -> None:
    made = session_of(bare, "ppo(warmup=0)")
    critic = made.critic
    assert critic is not None
    returns, rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0])
    good, bad = torch.tensor([0.9, 0.8, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.9, 0.9, 0.9])
    assert critic.judge(good.double(), returns.double(), rewards, [2, 3]).tolist() == pytest.approx(
        good.tolist()
    )
    assert critic.metrics["critic/gated"] == 0
    assert [critic.metrics[f"critic/auc_{at}"] for at in ("first", "middle", "last")] == [1, 1, 1]
    assert critic.judge(bad.double(), returns.double(), rewards, [2, 3]).tolist() == pytest.approx(
        [0.4] * 5
    )
    assert critic.metrics["critic/gated"] == 0.5
    assert critic.metrics["critic/explained_variance"] == pytest.approx(-2.24)
    # Rows (values at first, middle, last token): .5 .5 .1 right, .5 .2 .9 and .5 .7 .9 wrong.
    values = torch.tensor([0.5, 0.5, 0.1, 0.5, 0.2, 0.9, 0.5, 0.7, 0.9]).double()
    critic.judge(
        values, torch.tensor([1.0] * 3 + [0.0] * 6), torch.tensor([1.0, 0.0, 0.0]), [3, 3, 3]
    )
    assert [critic.metrics[f"critic/auc_{at}"] for at in ("first", "middle", "last")] == [
        0.5,
        0.5,
        0,
    ]
    critic.judge(good, torch.ones(5), torch.ones(2), [2, 3])
    assert "critic/auc_first" not in critic.metrics


def test_a_run_learns_alone_at_first_and_needs_one_completion_a_problem(bare: TrainConfig) -> None:
    notes = list[str]()

    class Told(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    batch = Steps(prompts_per_step=8, group_size=1)
    train(replace(bare, objective="ppo(warmup=2)", batch=batch, update="last(1)"), Told())
    found = metrics_of(Path(bare.out))
    assert [m["groups/empty_steps"] for m in found] == [1, 2, 2, 2]
    assert ["policy/loss" in m for m in found] == [False, False, True, True]
    assert found[0]["critic/explained_variance"] == 0 and found[0]["critic/loss"] > 0
    assert found[-1]["tokens/generated"] > found[1]["tokens/generated"] > 0
    explained = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    keys = {key for m in found for key in m if "critic" in key}
    assert len(keys) == 11 and not [key for key in keys if f"| `{key}` |" not in explained]
    # 1 state of 32 numbers: a forward, and two passes of a forward and a product for the weight.
    tokens = found[0]["tokens/generated"]
    assert found[0]["flops/critic"] == tokens * 2 * 32 * (1 + 2 * 2)
    assert found[0]["critic/bytes"] == 33 * 4 + 33 * 8
    assert not any("no group of step" in text for text in notes)
    (proof,) = [text for text in notes if text.startswith("change proof after")]
    assert "critic: 2 of 2 trainable tensors changed, 0 frozen" in proof


def test_a_run_that_ends_before_its_policy_begins_says_so(bare: TrainConfig) -> None:
    result = train(replace(bare, objective="ppo(warmup=4)", update="last(1)"))
    assert result["nothing_trained"].startswith("the critic still warmed up")


# Weights, checkpoints, schedules ---------------------------------------------------------


class StopAt(Observer):
    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, metrics: dict[str, float]) -> None:
        if metrics["step"] == self.at:
            raise MemoryError


@pytest.mark.parametrize(
    ("objective", "update"),
    [
        ("ppo(warmup=1)", "last(1)"),
        pytest.param("ppo(critic='mlp(8)', on='last', warmup=0)", "full", marks=pytest.mark.slow),
        pytest.param("ppo(critic='lora(rank=2)', kl=0.01, kl_form='k1_reward', warmup=1)", "full"),
        pytest.param("ppo(critic='full', warmup=0)", "lora(rank=2)", marks=pytest.mark.slow),
        pytest.param("ppo(warmup=1)", "badam(every=1) @ last(2)", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_the_uncut_one(
    bare: TrainConfig, tmp_path: Path, objective: str, update: str
) -> None:
    config = replace(bare, objective=objective, update=update, steps=5)
    config = replace(config, optimizer=Optimizer(learning_rate=1e-3))
    train(replace(config, out=str(tmp_path / "whole")))
    cut = replace(config, out=str(tmp_path / "cut"))
    with pytest.raises(MemoryError):
        train(cut, StopAt(3))
    result = train(cut, resume=True)
    assert metrics_of(Path(cut.out)) == metrics_of(tmp_path / "whole")
    assert tensors_of(Path(cut.out)) == tensors_of(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["change_proof"] == whole["change_proof"]


def test_a_checkpoint_has_the_critic_and_an_export_has_not(
    bare: TrainConfig, tmp_path: Path
) -> None:
    config = replace(
        bare, objective="ppo(critic='lora(rank=2)', warmup=1)", update="last(1)", steps=2
    )
    result = train(config)
    assert "critic: 44 of 44 trainable tensors changed" in result["change_proof"]
    saved = runs.checkpoints(Path(bare.out))[-1]
    names = set(load_file(saved / "tensors.safetensors"))
    assert "critic/value/reader.0.weight" in names
    assert any(name.startswith("critic/optimizer/exp_avg/model.") for name in names)
    export_run(Path(bare.out), tmp_path / "out", "merged", False)
    assert not [
        n for n in load_file(tmp_path / "out" / "model.safetensors") if "reader" in n or "lora" in n
    ]
    state = json.loads((saved / "state.json").read_text())
    del state["critic"]["depth"]
    with runs.open_run(Path(bare.out)).checkpointing(9, state, 0, 9) as folder:
        (folder / "tensors.safetensors").write_bytes((saved / "tensors.safetensors").read_bytes())
    with pytest.raises(UserError, match="what the critic kept cannot be read"):
        train(replace(config, steps=10), resume=True)


@pytest.mark.parametrize("update", ["full", "last(1)", "lora(rank=2)", "pissa(rank=2)"])
def test_an_own_model_is_the_base_and_stays_it(bare: TrainConfig, update: str) -> None:
    """Its memory is the policy's where neither trains, and what the policy learns does not reach it."""
    made = session_of(bare, "ppo(critic='lora(rank=2)')", update)
    assert made.critic is not None and made.critic.own is not None
    base = prepare(replace(bare, update="full")).policy.model
    shared, rows = {p.data_ptr() for p in made.policy.model.parameters()}, rows_of(3)
    own = [p.data_ptr() in shared for p in made.critic.own.frozen.values()]
    assert {
        "full": not any(own),
        "last(1)": any(own) and not all(own),
        "lora(rank=2)": all(own),
    }.get(update, not any(own))
    with torch.no_grad():
        for parameter in made.prepared.trainable.values():
            parameter += 1.0
        ids = torch.tensor([rows[0].prompt + rows[0].tokens])
        wanted = base(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 2:5]
        pack = made.critic.scorer.pack(rows)
        found = made.critic.scorer.hidden(pack, made.critic.scorer.trunk(pack))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_critic_has_no_gradient_in_the_policy(bare: TrainConfig) -> None:
    for critic in CRITICS:
        made = session_of(bare, f"ppo(critic='{critic}')", "full")
        assert made.critic is not None
        hearing.valued(made, made.critic, rolled(made, MIXED))
        assert all(p.grad is None for p in made.policy.model.parameters())


def test_a_schedule_that_reaches_lower_begins_the_critic_anew(bare: TrainConfig) -> None:
    """The layers go down from the last: what was read at layer 2 is a trained one's output then."""
    config = replace(
        bare,
        objective="ppo(warmup=1)",
        update="badam(every=1, order='descending') @ last(2)",
        steps=5,
    )
    train(replace(config, optimizer=Optimizer(learning_rate=1e-3)))
    found = metrics_of(Path(bare.out))
    decisions = [
        json.loads(x) for x in (Path(bare.out) / "decisions.jsonl").read_text().splitlines()
    ]
    assert [d["step"] for d in decisions if "critic_refit_at" in d] == [2]
    assert [m["critic/refits"] for m in found] == [0, 0, 1, 1, 1]
    assert ["policy/loss" in m for m in found] == [False, True, False, True, True]
    assert found[2]["critic/explained_variance"] == 0, "it says the mean again"


def test_a_trunk_that_is_not_there_is_refused(bare: TrainConfig) -> None:
    with pytest.raises(
        UserError, match="on='trunk' reads frozen layers, and this model may train all"
    ):
        session_of(bare, "ppo(on='trunk')", "full")
    with pytest.raises(UserError, match="is run whole, by the library"):
        session_of(bare, "ppo(on='trunk')", compute=Compute(engine="library"))
    for wrong, words in (
        ("haed", "unknown update 'haed'"),
        ("mlp(0)", "unknown update 'mlp'"),
        ("last(9)", "the model has only 3 layers"),
        *((text, "has a schedule or rates of its own") for text in ("badam", "loraplus", "muon")),
    ):
        with pytest.raises(UserError, match=f"a critic is head, mlp or a plain update; .*{words}"):
            session_of(bare, f"ppo(critic='{wrong}')")
    made = session_of(bare, "ppo", "full")
    assert made.critic is not None and made.critic.counters.depth is None


def test_an_objective_without_a_critic_has_none(bare: TrainConfig) -> None:
    made = session_of(bare, "reinforce_pp")
    assert made.critic is None and made.flops.critic is None
    assert math.isfinite(made.flops.token)


# Costs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "update", "engine"),
    [
        ("ppo", "last(1)", "split"),
        ("ppo(critic='mlp(8)', passes=3)", "last(1)", "split"),
        ("ppo(on='last')", "last(1)", "split"),
        ("ppo", "full", "split"),
        ("ppo", "full", "library"),
        ("ppo(critic='lora(rank=2)')", "last(1)", "split"),
        ("ppo(critic='full')", "last(1)", "split"),
        ("ppo(critic='last(1)')", "full", "library"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_its_flops_are_what_torch_counts(
    bare: TrainConfig, objective: str, update: str, engine: Any, kept: bool
) -> None:
    compute = Compute(engine=engine, trunk_bytes=2**30 * kept)
    made = session_of(bare, objective, update, compute=compute)
    assert made.critic is not None
    rollout = rolled(made, MIXED)
    with counter() as mode:
        hearing.valued(made, made.critic, rollout)
    found = made.flops.step(rollout.groups, Batch((), 8, 1, frozenset()), 1)
    assert found.critic == mode.get_total_flops()
    assert found.total == found.sampling + found.critic


def test_a_plan_knows_its_bytes_and_flops(bare: TrainConfig) -> None:
    machine, lengths = hardware.parse("24GB"), Lengths(12, 12, 16, 16)
    numbers = {}
    for name in (
        "reinforce_pp(kl=0)",
        *(f"ppo(critic='{c}')" for c in ("head", "lora(rank=2)", "full")),
    ):
        config = replace(bare, objective=name, update="last(1)", sampling=Sampling(max_tokens=16))
        config = replace(config, batch=Steps(2, 4, micro_batch=8, rollout_batch=8))
        found = overall.make(config, machine, lengths)
        held = found.memory.largest.get("critic", 0)
        numbers[name] = held, found.flops.critic, [p.name for p in found.memory.phases]
        assert (
            "critic" not in found.text()
            if name == "reinforce_pp(kl=0)"
            else ", critic " in found.text()
        )
    (none, _, phases), head, lora, full = numbers.values()
    assert none == 0 and "critic" not in phases and "critic" in head[2]
    # 33 numbers, three times in fp32; a forward and two passes of 32 products for 8 x 16 tokens.
    assert head[:2] == (33 * 4 * 3, 128 * 2 * 32 * 5)
    weights = sum(p.numel() for p in random_model("qwen2").parameters())
    assert full[0] == weights * 12
    # What an adapter trains, and of the base what the policy trains: the last of three layers.
    last = sum(p.numel() for n, p in random_model("qwen2").named_parameters() if ".layers.2." in n)
    assert lora[0] > 4 * last and lora[0] < full[0] and head[1] < lora[1] < full[1]
