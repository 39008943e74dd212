"""The contract of every sampler, among them those that own their loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import metrics_of, tensors_of
from http_sampler import Http, HttpSampler, Server
from modicum import updates
from modicum.config import Compute, Sampling
from modicum.engine import Asked, Changed, Policy, policy_of, samplers
from modicum.engine.samplers import SAMPLERS
from modicum.models.load import TINY, load
from modicum.serving import members
from modicum.serving.client import Server as Client
from modicum.serving.sampler import ServedSampler
from modicum.training.loop import train
from modicum.types import Completion, RunStopped, UserError
from modicum.updates import Prepared
from rows import apart
from vllm_stub import Stub

MEMBERS = ["local", "http", "server", "vllm"]
"""One of these is one file (http_sampler.py) and this row; two ask a stand-in for vLLM."""
CUTS = [{"top_k": 5}, {"top_p": 0.8}]
PROMPTS = [(40, 41, 42, 43), (50,), (60, 61, 62)]
KEYS: list[tuple[object, ...]] = [("test", 0), ("test", 1), ("test", 2)]
SHORT = Sampling(max_tokens=8, temperature=1.3)


@pytest.fixture(autouse=True)
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server's row; all servers are shut down afterwards."""
    made: list[Server] = []
    begin = Server.__init__

    def watched(self: Server, *args: Any) -> None:
        begin(self, *args)
        made.append(self)

    monkeypatch.setattr(Server, "__init__", watched)
    monkeypatch.setitem(SAMPLERS, "http", Http)
    yield
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The expression of a member, with what it needs; what was begun for it ends afterwards."""
    with ExitStack() as stack:

        def begin(name: str) -> str:
            if name == "server":
                return f"server('{stack.enter_context(Stub(TINY)).url}')"
            if name == "vllm":

                def made(*args: Any, **options: Any) -> OwnStub:
                    return stack.enter_context(closing(OwnStub()))

                monkeypatch.setattr(members, "ServerProcess", made)
                monkeypatch.setattr(members, "require_vllm", lambda python: None)
            return name

        yield begin


class OwnStub:
    """A server of its own, in this process."""

    def __init__(self) -> None:
        self.stub = Stub(TINY)
        self.server = Client(self.stub.url)

    def restart(self) -> None:
        self.close()
        self.stub = Stub(TINY)
        self.server = Client(self.stub.url)

    def close(self) -> None:
        self.stub.close()


@pytest.fixture(params=MEMBERS)
def made(
    request: pytest.FixtureRequest, told: Callable[[str], str]
) -> Iterator[tuple[Policy, Prepared]]:
    """The tiny base under LoRA, moved a little, so that the adapter counts."""
    loaded = load("tiny", device="cpu")
    prepared = updates.parse("lora(rank=2)").apply(loaded.model)
    policy = policy_of(loaded, prepared, Compute(sampler=told(request.param)))
    move(policy, prepared)
    yield policy, prepared
    policy.sampler.close()


def test_the_suite_knows_all_members() -> None:
    assert set(SAMPLERS) == set(MEMBERS)


def move(policy: Policy, prepared: Prepared) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prepared.active.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    policy.follow(prepared)


def flat(groups: list[tuple[Completion, ...]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


def off(policy: Policy, groups: list[tuple[Completion, ...]], sampling: Sampling) -> float:
    """The largest difference between the sampler's log-probs and the scorer's."""
    return float(apart(policy, PROMPTS, groups, sampling).max())


def test_completions_come_in_order_and_whole(made: tuple[Policy, Prepared]) -> None:
    policy, told = made[0], list[int]()
    groups = policy.sample(PROMPTS, KEYS, 4, SHORT, progress=told.append)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert told[-1] == 3
    for completion in flat(groups):
        assert 1 <= len(completion.tokens) == len(completion.logprobs) <= 8
        assert completion.finished == (completion.tokens[-1] in policy.end_tokens)
        assert completion.finished or len(completion.tokens) == 8
        shown = policy.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        assert completion.text == shown
    alone = policy.sample(PROMPTS[1:2], KEYS[1:2], 4, SHORT)
    assert [c.tokens for c in alone[0]] == [c.tokens for c in groups[1]]


@pytest.mark.parametrize("cut", [{}, *CUTS, {"temperature": 0.7}])
def test_log_probs_are_those_of_the_sampling_distribution(
    made: tuple[Policy, Prepared], cut: dict[str, Any]
) -> None:
    policy, sampling = made[0], replace(SHORT, **cut)
    if cut in CUTS and isinstance(policy.sampler, ServedSampler):
        with pytest.raises(UserError, match="top-k and top-p"):
            policy.sample(PROMPTS, KEYS, 3, sampling)
        return
    assert off(policy, policy.sample(PROMPTS, KEYS, 3, sampling), sampling) < 1e-4


def test_keys_decide_what_is_drawn(made: tuple[Policy, Prepared]) -> None:
    policy = made[0]
    one, again, other = (
        [c.tokens for c in flat(policy.sample(PROMPTS, keys, 3, SHORT))]
        for keys in (KEYS, KEYS, [(*key, 1) for key in KEYS])
    )
    assert one == again != other
    assert len(set(one)) > 6, "members differ"


def test_temperature_zero_takes_the_most_probable_token(made: tuple[Policy, Prepared]) -> None:
    policy = made[0]
    greedy = replace(SHORT, temperature=0.0)
    first, second = (policy.sample(PROMPTS, keys, 2, greedy) for keys in (KEYS, [("x",)] * 3))
    assert [c.tokens for c in flat(first)] == [c.tokens for c in flat(second)]
    for prompt, group in zip(PROMPTS, first, strict=True):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert group[0].tokens[0] == group[1].tokens[0] == int(logits.argmax())


def test_it_follows_the_policy(made: tuple[Policy, Prepared]) -> None:
    policy, prepared = made
    before = policy.sample(PROMPTS, KEYS, 3, SHORT)
    move(policy, prepared)
    after = policy.sample(PROMPTS, KEYS, 3, SHORT)
    # Weights are large by now, and the server adds A and B, scaled, in another order.
    assert off(policy, after, SHORT) < (5e-3 if isinstance(policy.sampler, ServedSampler) else 1e-4)
    assert off(policy, before, SHORT) > 1e-2


def test_stop_strings_are_obeyed(made: tuple[Policy, Prepared]) -> None:
    """The same completions, cut behind the token after which the text has one of them."""
    policy, stops = made[0], ("2", " +", "=")
    whole = flat(policy.sample(PROMPTS, KEYS, 8, replace(SHORT, max_tokens=24)))
    cut = flat(policy.sample(PROMPTS, KEYS, 8, replace(SHORT, max_tokens=24, stop=stops)))
    for long, short in zip(whole, cut, strict=True):
        texts = [policy.tokenizer.decode(long.tokens[:n]) for n in range(1, len(long.tokens) + 1)]
        hits = [n for n, text in enumerate(texts, 1) if any(stop in text for stop in stops)]
        assert short.tokens == long.tokens[: hits[0] if hits else None]
        assert short.logprobs == pytest.approx(long.logprobs[: len(short.tokens)], abs=1e-4)
        assert short.finished == (bool(hits) or long.finished)
        assert not hits or short.text.endswith(stops)
    assert 3 < sum(len(c.tokens) < len(d.tokens) for c, d in zip(cut, whole, strict=True)) < 24


@pytest.mark.parametrize("name", MEMBERS)
def test_prompts_that_are_too_long_are_refused(name: str, told: Callable[[str], str]) -> None:
    policy = policy_of(load("tiny", device="cpu"), None, Compute(sampler=told(name)))
    with pytest.raises(UserError, match="the model has positions for"):
        policy.sample([(5,) * 600], [("x",)], 2, Sampling(max_tokens=600))


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)", "lisa(layers=1, every=1)"])
def test_a_run_on_a_server_is_the_run_in_one_process(
    quick: Any, tmp_path: Path, update: str
) -> None:
    sampling = replace(quick.sampling, stop=("=",) if update == "last(1)" else ())
    config = replace(quick, update=update, sampling=sampling)
    for name in ("local", "http"):
        compute = Compute("cpu", sampler=name, trunk_bytes=0, agreement_every=1)
        batch = replace(config.batch, correction="none")
        train(replace(config, compute=compute, batch=batch, out=str(tmp_path / name)))
        said = json.loads((tmp_path / name / "environment.json").read_text())["stop"]
        assert said == list(sampling.stop)
    # A sampler elsewhere is heard by the trainer, too, which takes a forward.
    http, local = (
        [{k: v for k, v in line.items() if not k.startswith(("sampler/", "flops/"))} for line in of]
        for of in map(metrics_of, (tmp_path / "http", tmp_path / "local"))
    )
    assert http == local
    assert tensors_of(tmp_path / "http") == tensors_of(tmp_path / "local")


def test_a_server_that_is_not_told_is_found(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(self: HttpSampler, changed: Changed) -> None:
        pass

    monkeypatch.setattr(HttpSampler, "follow", deaf)
    rate = replace(quick.optimizer, learning_rate=1e-2)
    config = replace(quick, compute=Compute("cpu", sampler="http"), optimizer=rate)
    with pytest.raises(RunStopped, match="agreement proof"):
        train(config)


@pytest.mark.parametrize("correction", ["token", "mask", "none"])
def test_a_stale_server_that_lies_is_found_under_every_correction(
    quick: Any, monkeypatch: pytest.MonkeyPatch, correction: str
) -> None:
    """It says the version of the weights that it should have; what is trained shows it."""
    begin, current = HttpSampler.sample, dict[str, str]()

    def deaf(self: HttpSampler, changed: Changed) -> None:
        current["version"] = changed.version

    def lying(self: HttpSampler, *args: Any, **options: Any) -> Any:
        found = begin(self, *args, **options)
        return [
            tuple(replace(c, origin=replace(c.origin, weights=current["version"])) for c in group)
            for group in found
        ]

    monkeypatch.setattr(HttpSampler, "follow", deaf)
    monkeypatch.setattr(HttpSampler, "sample", lying)
    rate = replace(quick.optimizer, learning_rate=1e-2)
    compute = Compute("cpu", sampler="http", agreement_every=0)
    batch = replace(quick.batch, correction=correction)
    config = replace(quick, compute=compute, optimizer=rate, batch=batch)
    with pytest.raises(RunStopped, match="log-probs of sampler and trainer differ by"):
        train(config)


def test_a_server_that_goes_on_after_a_stop_string_is_found(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = HttpSampler.sample

    def heedless(self: HttpSampler, asked: Asked) -> Any:
        return begin(self, replace(asked, sampling=replace(asked.sampling, stop=())))

    monkeypatch.setattr(HttpSampler, "sample", heedless)
    digits = replace(quick.sampling, stop=tuple("0123456789"))
    config = replace(quick, compute=Compute("cpu", sampler="http"), sampling=digits)
    with pytest.raises(RunStopped, match=r"goes on after the stop string '\d'; the sampler"):
        train(config)


@pytest.mark.parametrize("name", ["local", "vllm(memory=0.3)", "server('http://h:8', folder='/f')"])
def test_a_member_comes_back_from_its_expression(name: str) -> None:
    assert samplers.parse(str(samplers.parse(name))) == samplers.parse(name)
    with pytest.raises(UserError, match="unknown sampler"):
        samplers.parse("x" + name)
    assert json.dumps(str(samplers.parse(name)))
