"""What is sent to a server after an update, and what stops a run whose server is not as it should be.

The server is a stand-in with vLLM's dialect and traps (`vllm_stub`)."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import random_model
from helpers import tensors_of
from modicum import updates
from modicum.config import Compute, Optimizer, Sampling
from modicum.engine import Policy, policy_of
from modicum.engine.agreement import Agreement
from modicum.engine.version import require_origin
from modicum.models.load import TINY, load
from modicum.serving import child, members
from modicum.serving import sampler as served
from modicum.serving.client import Server
from modicum.serving.members import parse
from modicum.serving.proof import compare, require_versions
from modicum.serving.publish import Publication, Publisher
from modicum.serving.sampler import ServedSampler, seed_of
from modicum.training import session, step
from modicum.training.loop import train
from modicum.types import Completion, Group, Problem, RunStopped, UserError
from modicum.updates import UPDATES, Prepared
from rows import apart, batch_of
from vllm_stub import Faults, Stub

FIRST = [cls.examples[0] for cls in UPDATES.values()]
REST = [text for cls in UPDATES.values() for text in cls.examples[1:]]
PROMPTS = [(40, 41, 42, 43), (50,), (60, 61, 62)]
KEYS: list[tuple[object, ...]] = [("test", 0), ("test", 1), ("test", 2)]
SHORT = Sampling(max_tokens=6)
LAST = "model.layers.5."
ATTENTION = [f"self_attn.{m}_proj.{of}" for m in "kqv" for of in ("bias", "weight")]


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the tiny base."""
    with Stub(TINY) as made:
        yield made


def policy_on(stub: Stub, text: str) -> tuple[Policy, Prepared]:
    """The tiny base under an update, sampled by the server."""
    loaded = load("tiny", device="cpu")
    prepared = updates.parse(text).apply(loaded.model)
    policy = policy_of(loaded, prepared, Compute(sampler=f"server('{stub.url}')"))
    assert isinstance(policy.sampler, ServedSampler)
    return policy, prepared


def move_all(prepared: Prepared, by: float = 0.1) -> None:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in prepared.active.values():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))


def move(policy: Policy, prepared: Prepared, by: float = 0.1) -> None:
    move_all(prepared, by)
    policy.follow(prepared)


def off(policy: Policy, groups: list[tuple[Completion, ...]], sampling: Sampling = SHORT) -> float:
    """Mean |difference| between the server's log-probs and the scorer's, in nats a token."""
    return float(apart(policy, PROMPTS, groups, sampling).mean())


def agree(
    policy: Policy, prepared: Prepared, proof: Agreement, number: int, prompts: Any = PROMPTS
) -> None:
    """A step's completions and the proofs of them, as `training.step` has them."""
    drawn = policy.sample(prompts, KEYS, 4, SHORT)
    problem = Problem("1", "1+1", "2")
    groups = [Group(problem, p, c) for p, c in zip(prompts, drawn, strict=True)]
    require_origin(groups, SHORT, policy.changed.version)
    proof.check(policy, prepared, groups, number)


# What is sent ----------------------------------------------------------------------------


def names_of(text: str, changed: Callable[[str], bool], sent: bool = True) -> tuple[Any, Any]:
    """Names of what is sent once tensors have changed that have such names: to the base, as adapter."""
    prepared = updates.parse(text).apply(load("tiny", device="cpu").model)
    publisher = Publisher(prepared.model, prepared)
    publisher.sent = {"": ""} if sent else {}
    found = publisher.publication([name for name in prepared.trainable if changed(name)])
    return sorted(found.tensors), sorted(found.adapter)


def test_what_a_server_fuses_is_sent_whole() -> None:
    q = f"{LAST}self_attn.q_proj.bias"
    assert names_of("last(1)", lambda name: name == q) == ([LAST + name for name in ATTENTION], [])
    gate = names_of("last(1)", lambda name: "gate_proj" in name)[0]
    assert gate == [f"{LAST}mlp.{name}_proj.weight" for name in ("gate", "up")]
    assert names_of("last(1)", lambda name: "down_proj" in name)[0] == [
        f"{LAST}mlp.down_proj.weight"
    ]
    norm = f"{LAST}input_layernorm.weight"
    assert names_of("full", lambda name: name == norm)[0] == [norm]


def test_a_tied_head_is_sent_once() -> None:
    sent = names_of("full", lambda name: True)[0]
    assert "model.embed_tokens.weight" in sent and "lm_head.weight" not in sent
    assert len(sent) == 6 * 12 + 2


def test_what_has_not_changed_is_not_sent() -> None:
    """A version alone comes with the smallest module."""
    assert names_of("last(1)", lambda name: False) == (
        ["model.layers.0.input_layernorm.weight"],
        [],
    )


def test_a_server_that_has_nothing_gets_all_that_may_differ() -> None:
    tensors, adapter = names_of("last(1)", lambda name: True, sent=False)
    assert len(tensors) == 12 and all(name.startswith(LAST) for name in tensors)
    assert adapter == []
    tensors, adapter = names_of("lora(rank=2) @ last(1)", lambda name: True, sent=False)
    assert len(tensors) == 0 and len(adapter) == 14
    assert adapter[0] == f"base_model.model.{LAST}mlp.down_proj.lora_A.weight"
    # A start that rewrites the base: that too, once.
    tensors, adapter = names_of("pissa(rank=2) @ last(1)", lambda name: True, sent=False)
    assert len(tensors) == 10 and len(adapter) == 14
    assert names_of("pissa(rank=2) @ last(1)", lambda name: True)[0] == []
    tensors, adapter = names_of("dora(rank=2) @ last(1)", lambda name: True, sent=False)
    assert len(tensors) == 10 and adapter == []


@pytest.mark.parametrize(
    ("text", "as_adapter"),
    [
        *((text, True) for text in ("lora", "rslora", "loraplus", "lorafa", "pissa", "olora")),
        *((text, True) for text in ("adalora", "loraxs")),
        *((text, False) for text in ("dora", "vera", "miss", "ia3", "oft", "shira", "tinylora")),
        *((text, False) for text in ("lntuning", "full", "sparse", "galore")),
    ],
)
def test_an_update_says_how_it_goes(text: str, as_adapter: bool) -> None:
    prepared = updates.parse(UPDATES[text].examples[0]).apply(load("tiny", device="cpu").model)
    assert bool(Publisher(prepared.model, prepared).rank) == as_adapter


def test_the_factors_of_a_layer() -> None:
    """A and B by hand: B A with the scale, alpha over the rank, in B."""
    loaded = load("tiny", device="cpu")
    prepared = updates.parse("lora(rank=1, alpha=3) @ (last(1) & parts(mlp))").apply(loaded.model)
    publisher = Publisher(prepared.model, prepared)
    layer = publisher.layers[f"{LAST}mlp.down_proj"]
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()[0, :2] = torch.tensor([1.0, 2.0])
        layer.lora_B["default"].weight.zero_()[0, 0] = 5.0
    sent = publisher.publication(list(prepared.trainable)).adapter
    down, up = (sent[f"base_model.model.{LAST}mlp.down_proj.lora_{of}.weight"] for of in "AB")
    assert (up @ down)[0, :3].tolist() == [15.0, 30.0, 0.0]


def test_a_publication_is_written_aside(tmp_path: Path) -> None:
    what = Publication({"a.weight": torch.tensor([1.0, 2.0])})
    base, adapter, size = what.write(tmp_path / "modicum-1")
    assert adapter is None and size == 8
    assert base is not None
    assert [p.name for p in tmp_path.iterdir()] == [base.name]
    assert load_file(base / "model.safetensors")["a.weight"].tolist() == [1.0, 2.0]


# What is proved --------------------------------------------------------------------------


def sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_tensors_are_compared_as_a_server_fuses_them() -> None:
    ours = {f"l.{name}_proj.weight": torch.full((1, 2), float(n)) for n, name in enumerate("qkv")}
    ours |= {"embed_tokens.weight": torch.ones(2, 2), "norm.weight": torch.ones(3)}
    fused = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    padded = torch.zeros(64, 2)
    padded[:2] = 1
    theirs = {"l.qkv_proj.weight": sha(fused), "norm.weight": sha(torch.ones(3))}
    theirs |= {
        "embed_tokens.weight": sha(padded),
        "rotary.cache": "0",
        "norm.bias": sha(torch.ones(0)),
    }
    assert compare(theirs, ours, "it") == "3 of 5 tensors of it are the policy's, by their bytes"
    apart = {f"tp{n}:norm.weight": sha(torch.ones(3)) for n in range(2)} | {
        "tp0:l.qkv_proj.weight": "1"
    }
    assert compare(apart | {"tp1:l.qkv_proj.weight": "2"}, ours, "it").startswith("1 of 2 tensors")
    with pytest.raises(RunStopped, match=r"it does not hold .* 1 of 3 tensors differ \(l.qkv"):
        compare(theirs | {"l.qkv_proj.weight": sha(fused + 1)}, ours, "it")
    with pytest.raises(RunStopped, match="no tensor that could be compared"):
        compare({"rotary.cache": "0"}, ours, "it")


def test_one_version_and_no_other() -> None:
    require_versions([("a",), ("a",)], "a", "it")
    for odd in [("b",), ("a", "b"), ()]:
        with pytest.raises(RunStopped, match="it draws from weights of version"):
            require_versions([("a",), odd], "a", "it")


def test_the_seed_of_a_request() -> None:
    """The first 31 bits of SHA-256 of 'train', 0x1f, '7', 0x1f, '2'."""
    whole = hashlib.sha256(b"train\x1f7\x1f2").hexdigest()
    assert seed_of(("train", 7), 2) == int(whole[:8], 16) // 2
    assert len({seed_of(("train", 7), member) for member in range(100)}) == 100


# Every update ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [*FIRST, *(pytest.param(text, marks=pytest.mark.slow) for text in REST)]
)
def test_an_update_is_sampled_as_it_is_trained(text: str, quick: Any, stub: Stub) -> None:
    """Two optimizer steps at a large rate, and what the server says of each policy."""
    config = replace(
        quick,
        model="tiny",
        update=text,
        compute=Compute("cpu", sampler=f"server('{stub.url}')"),
        optimizer=Optimizer(learning_rate=1e-2),
    )
    made = session.prepare(config)
    policy, found = made.policy, []
    for _ in range(3):
        step.switch(made)
        found.append(off(policy, policy.sample(PROMPTS, KEYS, 2, SHORT)))
        step.optimizer_step(made, step.backward(made, batch_of(made), {})["loss"])
        policy.follow(made.prepared)
    policy.sampler.close()
    assert max(found) < 1e-5


def test_only_what_changed_is_sent(stub: Stub) -> None:
    policy, prepared = policy_on(stub, "lisa(layers=1, every=1, ends=False)")
    assert isinstance(policy.sampler, ServedSampler)
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    whole = policy.sampler.metrics()["sync/bytes"]
    assert whole == 4 * sum(p.numel() for p in prepared.trainable.values())
    prepared.activate([name for name in prepared.trainable if name.startswith(LAST)])
    move(policy, prepared)
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    told = policy.sampler.metrics()
    assert told["sync/bytes"] == 4 * sum(p.numel() for p in prepared.active.values()) < whole / 5
    assert told["time/sync_seconds"] > 0
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    assert policy.sampler.metrics() == {"time/sync_seconds": 0.0, "sync/bytes": 0.0}


def test_nothing_is_left_behind(stub: Stub, tmp_path: Path) -> None:
    loaded = load("tiny", device="cpu")
    prepared = updates.parse("lora(rank=2)").apply(loaded.model)
    compute = Compute(sampler=f"server('{stub.url}', folder='{tmp_path}')")
    policy = policy_of(loaded, prepared, compute)
    for _ in range(2):
        policy.sample(PROMPTS, KEYS, 2, SHORT)
        (held,) = tmp_path.iterdir()
        assert len(list(held.iterdir())) == 1, "the adapter that is used, which vLLM may read again"
        move(policy, prepared)
    assert list(stub.weights.adapters) == [next(held.iterdir()).name]
    policy.sampler.close()
    assert list(tmp_path.iterdir()) == []


# Faults ----------------------------------------------------------------------------------


def one_by_one(self: Publisher, model: nn.Module, prepared: Any = None) -> None:
    begin(self, model, prepared)
    self.units = {path: path for path in self.modules}


begin = Publisher.__init__

FAULTS = [
    ("last(1)", {"stale": True}, "does not hold the policy's weights: 7 of 44"),
    ("last(1)", {"keeps_cache": True}, "log-probs of sampler and library differ"),
    ("lora(rank=2)", {"old_adapter": True}, "log-probs of sampler and library differ"),
    ("lora(rank=2)", {"wrong_version": True}, "draws from weights of version another and not"),
    ("last(1)", {"two_versions": True}, "draws from weights of version .*, .* and not"),
    ("last(1)", {"no_version": True}, "draws from weights of version no version and not"),
    ("last(1)", {"other_base": True}, "does not hold .*embed.* serves another base"),
]


@pytest.mark.parametrize(("text", "fault", "words"), FAULTS, ids=lambda of: str(of)[:30])
def test_a_fault_stops_the_run(text: str, fault: dict[str, bool], words: str, stub: Stub) -> None:
    stub.faults = Faults(**fault)
    stub.restart()
    policy, prepared = policy_on(stub, text)
    proof = Agreement("fp32", 1, SHORT)
    with pytest.raises(RunStopped, match=words) as stopped:
        for number in range(3):
            agree(policy, prepared, proof, number)
            move(policy, prepared)
    assert len(str(stopped.value).splitlines()) == 1


def test_half_a_fused_group_stops_the_run(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Publisher, "__init__", one_by_one)
    policy, prepared = policy_on(stub, "last(1)")
    proof = Agreement("fp32", 1, SHORT)
    agree(policy, prepared, proof, 0)
    prepared.activate([f"{LAST}self_attn.q_proj.weight"])
    move(policy, prepared)
    with pytest.raises(
        RunStopped, match=r"does not hold .* 2 of 44 tensors differ \(model.layers.5.self"
    ):
        agree(policy, prepared, proof, 1)


def test_a_server_that_was_restarted_stops_the_run(stub: Stub) -> None:
    policy, _ = policy_on(stub, "last(1)")
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    stub.restart()
    with pytest.raises(RunStopped, match=r"version default and not .* was restarted"):
        policy.sample(PROMPTS, KEYS, 2, SHORT)


def test_a_server_that_does_not_come_back_stops_the_run(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "WAIT", 0.01)
    policy, _ = policy_on(stub, "last(1)")
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    stub.close()
    with pytest.raises(RunStopped, match=r"sampler proof: .*--resume goes on") as stopped:
        policy.sample(PROMPTS, KEYS, 2, SHORT)
    assert len(str(stopped.value).splitlines()) == 1


def test_a_run_stops_in_its_first_steps(quick: Any, stub: Stub) -> None:
    stub.faults.stale = True
    compute = Compute("cpu", sampler=f"server('{stub.url}')")
    rate = replace(quick.optimizer, learning_rate=1e-2)
    config = replace(quick, model="tiny", update="last(1)", compute=compute, optimizer=rate)
    with pytest.raises(RunStopped, match="does not hold the policy's weights"):
        train(config)


class Again:
    """A server of its own that is started again when it has gone."""

    def __init__(self, stub: Stub) -> None:
        self.stub, self.server, self.restarts = stub, Server(stub.url), 0

    def restart(self) -> None:
        self.restarts += 1
        self.stub.faults.dies_after = -1
        for _ in range(100):  # until the port is free
            try:
                self.stub.restart()
                self.server = Server(self.stub.url)
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError

    def close(self) -> None:
        self.stub.close()


@pytest.mark.parametrize("text", ["last(1)", "lora(rank=2)", "pissa(rank=2)"])
def test_a_server_of_its_own_is_started_again(text: str, stub: Stub) -> None:
    """In the middle of a step; all is sent again, and the completions are those of before."""
    policy, prepared = policy_on(stub, text)
    sampler = policy.sampler
    assert isinstance(sampler, ServedSampler)
    child = Again(stub)
    sampler.start = lambda: child  # type: ignore[assignment, return-value]
    policy.sample(PROMPTS, KEYS, 2, SHORT)
    move(policy, prepared)
    before = policy.sample(PROMPTS, KEYS, 2, SHORT)
    stub.faults.dies_after = stub.num_drawn + 2
    again = policy.sample(PROMPTS, KEYS, 2, SHORT)
    assert child.restarts == 1
    assert [[c.tokens for c in group] for group in again] == [[c.tokens for c in g] for g in before]
    assert off(policy, again) < 1e-4


def test_several_servers_share_the_prompts(stub: Stub) -> None:
    loaded = load("tiny", device="cpu")
    prepared = updates.parse("last(1)").apply(loaded.model)
    with Stub(TINY) as other:
        policy = policy_of(
            loaded, prepared, Compute(sampler=f"server('{stub.url}', '{other.url}')")
        )
        move(policy, prepared)
        both = policy.sample(PROMPTS, KEYS, 2, SHORT)
        assert stub.num_drawn == other.num_drawn == 3
    alone, twin = policy_on(stub, "last(1)")
    move(alone, twin)
    one = alone.sample(PROMPTS, KEYS, 2, SHORT)
    assert [[c.tokens for c in group] for group in both] == [[c.tokens for c in g] for g in one]


def test_what_a_server_cannot_do_is_refused(stub: Stub) -> None:
    policy, _ = policy_on(stub, "last(1)")
    for cut in ({"top_k": 5}, {"top_p": 0.8}):
        with pytest.raises(UserError, match="top-k and top-p"):
            policy.sample(PROMPTS, KEYS, 2, replace(SHORT, **cut))
    for text in ("server", "server('http://h:1', 'http://h:1/')"):
        with pytest.raises(UserError, match="it takes addresses, each once"):
            parse(text)
    for text in ("server('localhost:80')", "server('http://[::1')"):
        with pytest.raises(UserError, match="not a URL"):
            parse(text)


# Mixtures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts, which its checkpoint has one by one, and the library in one tensor."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("mixture")
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    random_model("qwen3_moe", layers=2, **sizes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def test_a_block_of_experts_is_sent_whole_by_the_names_of_the_checkpoint(mixture: Path) -> None:
    there = load_file(mixture / "model.safetensors")
    prepared = updates.parse("last(1)").apply(load(str(mixture), device="cpu").model)
    publisher = Publisher(prepared.model, prepared)
    whole = publisher.tensors(publisher.modules)
    assert whole.keys() == there.keys()
    assert all(torch.equal(there[name], whole[name]) for name in there)
    publisher.sent = {"": ""}
    (gate,) = (name for name in prepared.trainable if name.endswith("mlp.gate.weight"))
    block = "model.layers.1.mlp."
    kinds = [f"experts.{n}.{of}_proj" for n in range(4) for of in ("down", "gate", "up")]
    sent = sorted(publisher.publication([gate]).tensors)
    assert sent == [f"{block}{name}.weight" for name in (*kinds, "gate")]


def test_an_adapter_on_experts_is_merged(mixture: Path, tmp_path: Path) -> None:
    """The checkpoint with what is sent in its place is the policy."""
    from transformers import AutoModelForCausalLM

    update = updates.parse("lora(rank=2, experts=True) @ last(1)")
    prepared = update.apply(load(str(mixture), device="cpu").model)
    move_all(prepared)
    sent = Publisher(prepared.model, prepared).publication(list(prepared.trainable))
    assert not sent.adapter
    whole = load_file(mixture / "model.safetensors") | sent.tensors
    shutil.copy(mixture / "config.json", tmp_path)
    save_file({n: t.clone() for n, t in whole.items()}, tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[40, 41, 42, 43, 44]])
    with torch.no_grad():
        wanted, found = (model(input_ids=ids).logits for model in (prepared.model, again))
        bare = load(str(mixture), device="cpu").model(input_ids=ids).logits
    assert float((wanted - found).abs().max()) < 1e-5 < 0.01 < float((wanted - bare).abs().max())


def test_every_process_has_servers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("tiny", device="cpu")
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(members.dist, name, lambda value=value: value)
    four = ", ".join(f"'http://h:{n}'" for n in (1, 2, 3, 4))
    policy = policy_of(loaded, None, Compute(sampler=f"server({four})"))
    assert isinstance(policy.sampler, ServedSampler)
    assert [server.url for server in policy.sampler.servers] == ["http://h:2", "http://h:4"]
    with pytest.raises(UserError, match="3 addresses for 2 processes"):
        policy_of(loaded, None, Compute(sampler=f"server({four.rpartition(', ')[0]})"))


def test_what_vllm_would_read_otherwise_is_refused(folders: dict[str, Path]) -> None:
    loaded = load(str(folders["llama"]), device="cpu")
    loaded.model.config.name_or_path = loaded.model.name_or_path = "gone"
    with pytest.raises(UserError, match="export --format merged"):
        policy_of(loaded, None, Compute(sampler="vllm"))


@pytest.mark.parametrize("update", ["last(1)", "lora(rank=2)", "lisa(layers=1, every=1)"])
def test_a_resumed_run_goes_on_with_a_server_that_has_nothing(
    update: str, quick: Any, tmp_path: Path
) -> None:
    """All is sent again, so that the weights are those of the run that was not cut."""
    ends = []
    for name, cuts in (("uncut", []), ("cut", [2])):
        with Stub(quick.model) as stub:
            compute = Compute("cpu", sampler=f"server('{stub.url}')", agreement_every=1)
            config = replace(quick, update=update, compute=compute, out=str(tmp_path / name))
            for number, steps in enumerate([*cuts, 4]):
                train(replace(config, steps=steps), resume=number > 0)
                stub.restart()
        ends.append(tensors_of(tmp_path / name))
    assert ends[0] == ends[1]


def test_a_run_goes_on_with_a_server_at_another_address(quick: Any, tmp_path: Path) -> None:
    with Stub(quick.model) as one, Stub(quick.model) as other:
        run = replace(quick, out=str(tmp_path), steps=1)
        train(replace(run, compute=Compute("cpu", sampler=f"server('{one.url}')")))
        there = replace(run, steps=2, compute=Compute("cpu", sampler=f"server('{other.url}')"))
        train(there, resume=True)
        with pytest.raises(
            UserError, match=r"compute.sampler = \"server.*not compute.sampler = 'local'"
        ):
            train(replace(run, steps=3, compute=Compute("cpu")), resume=True)
        assert other.version != "default"


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("vllm", "give `python`, the interpreter that has vLLM"),
        (f"vllm(python='{sys.executable}')", "has no vLLM (scripts/vllm_env.sh"),
        ("vllm(python='/gone/python')", "/gone/python cannot be run: "),
        ("server('http://127.0.0.1:9')", "Connection refused'); is the server there?"),
    ],
)
def test_what_is_not_there_is_said_before_a_run_begins(
    sampler: str, words: str, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(child.PYTHON, raising=False)
    out = tmp_path / "run"
    with pytest.raises(UserError, match=re.escape(words)) as error:
        train(replace(quick, out=str(out), compute=Compute("cpu", sampler=sampler)))
    assert len(str(error.value).splitlines()) == 1 and not out.exists()
