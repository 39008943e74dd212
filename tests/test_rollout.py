"""Rollouts: what is sampled, where a completion ends, and what it may not depend on."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from cases import load
from conftest import FAMILIES, random_model
from helpers import engine_of
from modicum import rewards, tasks, updates
from modicum.config import Sampling
from modicum.engine.library import position_ids
from modicum.engine.logprobs import logprobs
from modicum.engine.policy import Policy
from modicum.engine.samplers import LocalSampler
from modicum.models.load import TINY
from modicum.training.metrics import rollout_metrics
from modicum.training.rollout import Rollout
from modicum.types import Completion, Group, Problem, Row, UserError
from test_engine import CUTS, cut, gemma2

SAMPLING = Sampling(max_tokens=10)
GREEDY = replace(SAMPLING, temperature=0.0)
PROMPTS = [(40, 41, 42, 43), (50,), (60, 61, 62, 63, 64, 65, 66), (70, 71)]


@cache
def model_of(family: str) -> Any:
    return random_model(family)


def sample(
    model: Any,
    prompts: list[tuple[int, ...]],
    sampling: Sampling,
    group_size: int = 2,
    ends: tuple[int, ...] = (0,),
    **options: Any,
) -> list[tuple[Completion, ...]]:
    """A rollout in which the noise of a prompt depends on its tokens and nothing else."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    keys = [("test", prompt) for prompt in prompts]
    engine = engine_of(model, "library" if isinstance(model, Scripted) else KIND)
    sampler = LocalSampler(
        engine, tokenizer, ends, **{k: options.pop(k) for k in SIZES & options.keys()}
    )
    policy = Policy(model, tokenizer, ends, torch.device("cpu"), engine, sampler)
    return policy.sample(prompts, keys, group_size, sampling, keep_trunk=True, **options)


def tokens(groups: list[tuple[Completion, ...]]) -> list[tuple[int, ...]]:
    return [completion.tokens for group in groups for completion in group]


def close(left: list[tuple[Completion, ...]], right: list[tuple[Completion, ...]]) -> bool:
    """Whether tokens are equal and log-probs are to 1e-4."""
    if tokens(left) != tokens(right):
        return False
    pairs = [
        (a, b)
        for mine, others in zip(left, right, strict=True)
        for m, o in zip(mine, others, strict=True)
        for a, b in zip(m.logprobs, o.logprobs, strict=True)
    ]
    return all(abs(a - b) < 1e-4 for a, b in pairs)


SIZES = {"rollout_batch", "trunk_bytes"}
KIND = "auto"  # the engine of real models


@pytest.fixture(params=["split", "library"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys.modules[__name__], "KIND", request.param)
    return request.param


# Ends and lengths, on a model that writes what it is told --------------------------------


class Scripted(nn.Module):
    """Writes `script[k]` after a prompt whose first token is k; its cache is (k, step)."""

    def __init__(self, script: dict[int, list[int]], vocabulary: int = 282) -> None:
        super().__init__()
        self.script = script
        self.vocabulary = vocabulary
        self.config = SimpleNamespace(max_position_embeddings=None)
        self.head = nn.Linear(1, vocabulary)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, cache: Any = None, **rest: Any) -> Any:
        if cache is None:
            mask = rest["attention_mask"]
            first = [0] * len(input_ids) if mask is None else mask.argmax(1).tolist()
            rows = torch.tensor([ids[i] for ids, i in zip(input_ids.tolist(), first, strict=True)])
            cache = Rows(rows)
        logits = torch.full((len(cache.rows), 1, self.vocabulary), -100.0)
        for row, start in enumerate(cache.rows.tolist()):
            logits[row, 0, self.script[start][cache.step]] = 100.0
        cache.step += 1
        return SimpleNamespace(logits=logits, cache=cache)


class Rows:
    """The part of a key/value cache that the sampler reorders."""

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.step = rows, 0

    def reorder_cache(self, row_B: Tensor) -> None:
        self.rows = self.rows[row_B]


@pytest.mark.parametrize("case", load("completion_mask"))
def test_a_completion_ends_with_its_first_end_token(case: dict[str, Any]) -> None:
    """The mask's ones are what is kept, also where the padding is an end token."""
    given, kept = case["input"], sum(case["expected"])
    sampling = Sampling(max_tokens=len(given["ids"]))
    ends = tuple(given["eos"])
    ((found,),) = sample(Scripted({7: given["ids"]}), [(7,)], sampling, 1, ends)
    assert found.tokens == tuple(given["ids"][:kept])
    assert len(found.logprobs) == kept >= 1
    assert found.finished == (found.tokens[-1] in ends)


def test_rows_that_end_early_leave_and_the_others_go_on() -> None:
    """OFF-08: prompt k of 32 writes k, k + 1, ...; lengths differ; every row is its own."""
    script = {k: [*range(k, k + (k * 7) % 11), 0, *[5] * 20] for k in range(40, 72)}
    prompts = [(k,) * (1 + k % 3) for k in script]
    for batch in (512, 10, 1):
        groups = sample(Scripted(script), prompts, Sampling(max_tokens=12), 3, rollout_batch=batch)
        for group, k in zip(groups, script, strict=True):
            wanted = (*range(k, k + (k * 7) % 11), 0)
            assert [c.tokens for c in group] == [wanted] * 3
            assert all(len(c.logprobs) == len(wanted) and c.finished for c in group)


def test_the_limit_cuts_and_says_so() -> None:
    script = {40: [5, 6, 7, 8], 41: [5, 6, 0, 8], 42: [5, 6, 7, 0]}
    groups = sample(Scripted(script), [(40,), (41,), (42,)], Sampling(max_tokens=3), 1)
    assert tokens(groups) == [(5, 6, 7), (5, 6, 0), (5, 6, 7)]
    assert [group[0].finished for group in groups] == [False, True, False]


def test_end_tokens_are_not_part_of_the_text() -> None:
    letters = AutoTokenizer.from_pretrained(TINY)("12 + 3")["input_ids"]
    model = Scripted({40: [*letters, 0]})
    ((found,),) = sample(model, [(40,)], Sampling(max_tokens=len(letters) + 1), 1)
    assert found.text == "12 + 3"
    assert found.tokens == (*letters, 0)


def test_stop_strings_end_rows_and_the_others_go_on() -> None:
    """Letters, digits and signs are tokens of their own: rows stop within the limit, or not."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    written = {40: "1+2 = 3 = 4", 41: "12 = 3", 42: "12+3", 43: "\n\nUser: 3"}
    script = {k: [*tokenizer(text)["input_ids"], *[5] * 20] for k, text in written.items()}
    stops = (" = ", "\nUser:")
    for batch in (512, 1):
        sampling = Sampling(max_tokens=9, stop=stops)
        prompts = [(k,) for k in script]
        groups = sample(Scripted(script), prompts, sampling, 2, rollout_batch=batch)
        assert [group[0].text for group in groups[:2]] == ["1+2 = ", "12 = "]
        assert groups[2][0].text.startswith("12+3")
        assert groups[3][0].text == "\n"
        assert [group[0].finished for group in groups] == [True, True, False, True]
        for group, row in zip(groups, script.values(), strict=True):
            assert [c.tokens for c in group] == [tuple(row[: len(group[0].tokens)])] * 2
            assert len(group[0].logprobs) == len(group[0].tokens)
    # A text of the prompt does not count, nor what comes after the limit.
    prompt = (42, *tokenizer(" = ")["input_ids"])
    ((found,),) = sample(Scripted(script), [prompt], Sampling(max_tokens=3, stop=stops), 1)
    assert (found.text, found.finished) == ("12+", False)


def test_completions_of_a_prompt_that_opened_thinking_begin_with_the_mark() -> None:
    """So the form can be earned, and a guess in thinking that is cut off is no answer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    first = dict(zip("abcd", range(40, 44), strict=True))
    written = {
        "a": "First, 2 plus 2.</think> <answer>4</answer>",
        "b": "maybe \\boxed{4}, but let me check again",
        "c": "",
        "d": "<think>2+2</think> <answer>4</answer>",
    }
    script = {first[k]: [*tokenizer(text)["input_ids"], 0] for k, text in written.items()}
    ending = tokenizer("2+2?\n<think>\n")["input_ids"]
    prompts = [(k, *ending) for k in script]
    groups = sample(Scripted(script), prompts, Sampling(max_tokens=60), 1)
    good, guess, empty, own = (group[0] for group in groups)
    assert good.text == "<think>\nFirst, 2 plus 2.</think> <answer>4</answer>"
    assert guess.text == "<think>\nmaybe \\boxed{4}, but let me check again"
    assert (empty.text, own.text) == ("", written["d"])
    assert good.tokens == tuple(script[40])
    problem, task = Problem("p", "2+2?", "4"), tasks.parse("arithmetic")
    reward = rewards.parse("accuracy + 0.2*format + 0.1*length(99)")
    scores = reward.score_group(task, problem, [good, guess, empty, own], [])
    found = [list(row.values()) for row in scores]
    assert found == [[1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert not task.grade(problem, guess.text).lenient
    closed = tokenizer("2+2?\n<think>\n\n</think>\n\n")["input_ids"]
    ((plain,),) = sample(Scripted(script), [(41, *closed)], Sampling(max_tokens=60), 1)
    assert plain.text == written["b"]


def test_progress_counts_finished_prompts() -> None:
    told: list[int] = []
    prompts = [(k,) for k in range(40, 45)]
    model = Scripted({k: [0] for k in range(40, 45)})
    sample(model, prompts, Sampling(max_tokens=1), 2, rollout_batch=4, progress=told.append)
    assert told == [2, 4, 5]


def test_length_statistics_case() -> None:
    (case,) = load("length_stats")
    given, wanted = case["input"], case["expected"]
    made = [
        Completion(tuple(range(n)), (0.0,) * n, "", finished=not cut_off)
        for n, cut_off in zip(given["lengths"], given["truncated"], strict=True)
    ]
    group, totals = Group(Problem("p", "q", "a"), (1,), tuple(made)), torch.tensor([[0.0, 1.0]])
    scores = [[{"accuracy": 0.0}, {"accuracy": 1.0}]]
    found = rollout_metrics(0, Rollout([group], scores, totals))
    assert found["completions/length_max"] == wanted["max"]
    assert found["completions/length_mean"] == wanted["mean"]
    assert found["completions/truncated"] == wanted["clipped"]


def test_position_ids_case() -> None:
    (case,) = load("position_ids")
    found = position_ids(torch.tensor([case["input"]["mask"]]))[0].tolist()
    for position, wanted in zip(found, case["expected"], strict=True):
        assert position == (0 if wanted is None else wanted), "padding stays at 0"


# Real models -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_a_loop_without_a_cache(family: str) -> None:
    model = model_of(family)
    groups = sample(model, PROMPTS, GREEDY)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(GREEDY.max_tokens):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == 0:
                    break
        assert [c.tokens for c in group] == [tuple(ids[len(prompt) :])] * 2
    assert len(set(tokens(groups))) == len(PROMPTS), "the prompts matter"


def check_logprobs(model: Any, groups: list[tuple[Completion, ...]], sampling: Sampling) -> None:
    """The kept log-probs are those of the plain forward, and of the trainer (LOSS-11)."""
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([prompt + completion.tokens])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].tolist()
                row = Row(prompt, completion.tokens, completion.logprobs, 1.0)
                trained, _ = logprobs(engine_of(model), [row], sampling)
            rows = zip(logits, completion.tokens, strict=True)
            wanted = [cut(line, sampling)[token] for line, token in rows]
            assert completion.logprobs == pytest.approx(wanted, abs=1e-4)
            assert trained.tolist() == pytest.approx(completion.logprobs, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", CUTS)
def test_log_probs_are_those_of_the_sampling_distribution(family: str, sampling: Sampling) -> None:
    sampling = replace(sampling, max_tokens=8)
    model = model_of(family)
    groups = sample(model, PROMPTS, sampling)
    check_logprobs(model, groups, sampling)
    assert len(set(tokens(groups))) == 2 * len(PROMPTS)


def test_sliding_windows_and_softcaps_are_sampled_right() -> None:
    """gemma2: a window of 8 that prompt and completion outgrow, and capped logits."""
    prompts = [tuple(t % 58 + 2 for t in prompt) for prompt in PROMPTS]
    groups = sample(gemma2(), prompts, SAMPLING)
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            row = Row(prompt, completion.tokens, completion.logprobs, 1.0)
            with torch.no_grad():
                trained, _ = logprobs(engine_of(gemma2()), [row], SAMPLING)
            assert trained.tolist() == pytest.approx(completion.logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_does_not_depend_on_its_batch(family: str) -> None:
    """Alone, with shorter and longer prompts, in another order, or in small passes."""
    model = model_of(family)
    together = sample(model, PROMPTS, SAMPLING)
    assert close(together, [sample(model, [prompt], SAMPLING)[0] for prompt in PROMPTS])
    assert close(together, sample(model, PROMPTS[::-1], SAMPLING)[::-1])
    for batch in (1, 4, 6):
        assert close(together, sample(model, PROMPTS, SAMPLING, rollout_batch=batch))
    larger = sample(model, PROMPTS, SAMPLING, group_size=5)
    assert close(together, [group[:2] for group in larger])


def test_a_completion_does_not_depend_on_which_rows_have_ended() -> None:
    """With 40 end tokens rows end at all times; with one, the same noise goes on."""
    model, ends = model_of("llama"), tuple(range(0, 282, 7))
    short = sample(model, PROMPTS, SAMPLING, 8, ends)
    long = sample(model, PROMPTS, SAMPLING, 8)
    assert len({len(t) for t in tokens(short)}) > 3
    for some, more in zip(tokens(short), tokens(long), strict=True):
        stop = next((i + 1 for i, token in enumerate(more) if token in ends), len(more))
        assert some == more[:stop]


@pytest.mark.parametrize("stop", [None, ("1", "a ")])
def test_a_completion_does_not_depend_on_how_often_it_is_asked(
    stop: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which rows have ended: after every token, as on a CPU, or once in 16."""
    sampling = replace(SAMPLING, max_tokens=40, stop=stop)
    given = (model_of("llama"), PROMPTS, sampling, 8, tuple(range(0, 282, 20)))
    often = sample(*given)
    monkeypatch.setattr("modicum.engine.samplers.ASK_EVERY", {})
    seldom = sample(*given)
    assert close(often, seldom)
    assert len({len(t) for t in tokens(often)}) > 8
    for mine, others in zip(often, seldom, strict=True):
        for m, o in zip(mine, others, strict=True):
            assert (m.text, m.finished) == (o.text, o.finished)
            if m.trunk is not None and o.trunk is not None:
                assert m.trunk.completion.shape == o.trunk.completion.shape


def test_the_models_generation_settings_are_ignored() -> None:
    """OFF-04."""
    model = random_model("qwen2")
    before = sample(model, PROMPTS, SAMPLING, 8)
    settings = model.generation_config
    settings.do_sample, settings.top_k, settings.temperature = True, 1, 0.01
    settings.repetition_penalty, settings.min_new_tokens = 5.0, 9
    assert close(before, sample(model, PROMPTS, SAMPLING, 8))
    assert all(len({c.tokens for c in group}) == 8 for group in before)


def test_temperature_0_is_repeatable() -> None:
    model = model_of("qwen3")
    groups = sample(model, PROMPTS, GREEDY, 3)
    assert groups == sample(model, PROMPTS, GREEDY, 3)
    assert all(len({c.tokens for c in group}) == 1 for group in groups)


def test_too_few_positions_are_a_user_error() -> None:
    model = random_model("llama", max_position_embeddings=16)
    fits = replace(SAMPLING, max_tokens=9)
    assert len(sample(model, PROMPTS, fits)) == len(PROMPTS)
    with pytest.raises(UserError, match=r"max_tokens = 10 make 17 tokens.* 16$"):
        sample(model, PROMPTS, SAMPLING)


def test_sampling_leaves_no_trace_in_the_model() -> None:
    model = random_model("qwen2")
    flags = [p.requires_grad for p in model.parameters()]
    sample(model, PROMPTS, SAMPLING)
    assert [p.requires_grad for p in model.parameters()] == flags
    row = Row((40,), (41, 42), (0.0, 0.0), 1.0)
    logprobs(engine_of(model), [row], SAMPLING)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_adapter_is_sampled_from() -> None:
    """LORA-01: a large B changes the completions to those of the trainer's model."""
    prepared = updates.parse("lora(rank=2)").apply(random_model("llama"), 0)
    before = sample(prepared.model, PROMPTS, GREEDY)
    with torch.no_grad():
        for name, parameter in prepared.trainable.items():
            if "lora_B" in name:
                parameter.fill_(0.05)
    after = sample(prepared.model, PROMPTS, GREEDY)
    check_logprobs(prepared.model, after, replace(GREEDY, temperature=1.0))
    assert not set(tokens(after)) & set(tokens(before))
    merged = sample(prepared.merged(), PROMPTS, GREEDY)
    assert close(after, merged)
