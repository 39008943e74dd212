"""The client of a vLLM server, against a stand-in that has vLLM's traps."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modicum.serving import client
from modicum.serving.client import Answer, Server, ServerGone
from modicum.types import UserError
from vllm_stub import PREFIX, Faults, Stub

PROMPT = [40, 41, 42, 43]
LAYER = "model.layers.2."


@pytest.fixture(scope="module")
def shared(folders: dict[str, Path]) -> Iterator[Stub]:
    with Stub(folders["qwen2"]) as stub:
        yield stub


@pytest.fixture
def stub(shared: Stub) -> Stub:
    """The stand-in as if it were new, without faults."""
    shared.faults = Faults()
    shared.restart()
    shared.asked.clear()
    return shared


@pytest.fixture
def canned() -> Iterator[Stub]:
    """One without a model, whose tokens are a function of the seed."""
    with Stub(None) as stub:
        yield stub


def requests(count: int, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    drawn = {"n": 1, "temperature": 1.0, "max_tokens": 6}
    return [
        {"token_ids": PROMPT, "sampling_params": {**drawn, "seed": seed + number}, **more}
        for number in range(count)
    ]


def one(server: Server, **more: Any) -> Answer:
    (answer,) = server.generate(requests(1, **more))
    return answer


@pytest.fixture
def moved(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder with tensors of the base, moved; by default a whole layer."""
    from safetensors.torch import load_file, save_file

    def make(part: str = LAYER, by: float = 0.5) -> Path:
        found = load_file(folders["qwen2"] / "model.safetensors")
        folder = tmp_path / f"moved{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tensors = {name: tensor + by for name, tensor in found.items() if part in name}
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def scored(folder: Path, answer: Answer, part: str = "", by: float = 0.0) -> list[float]:
    """What the library says of the tokens, some of the base's tensors moved."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part and part in name:
                parameter.add_(by)
        found = model(input_ids=torch.tensor([[*PROMPT, *answer.tokens]])).logits[0].log_softmax(-1)
    return [float(found[len(PROMPT) - 1 + n, token]) for n, token in enumerate(answer.tokens)]


def test_it_says_what_it_is(stub: Stub, folders: dict[str, Path]) -> None:
    assert Server(stub.url).about() == {
        **{"release": "0.32.0", "model": "base", "root": str(folders["qwen2"])},
        **{"max_model_len": 256, "dtype": "float32", "version": "default"},
    }


def test_log_probs_of_other_settings_are_refused(canned: Stub) -> None:
    canned.faults.logprobs_mode = "raw_logprobs"
    with pytest.raises(UserError, match="must be started with --logprobs-mode processed_logprobs"):
        Server(canned.url).about()


@pytest.mark.parametrize("release", ["0.31.0", "0.34.0", "0.9.2", "1.0.0", "next"])
def test_versions_that_are_not_known_are_refused(canned: Stub, release: str) -> None:
    canned.faults.release = release
    with pytest.raises(
        UserError, match=rf"is vLLM {release}; known are those from 0\.32, before 0\.34"
    ):
        Server(canned.url).about()


@pytest.mark.parametrize("release", ["0.32.0", "0.32.1+cpu", "0.33.0"])
def test_versions_that_are_known(canned: Stub, release: str) -> None:
    canned.faults.release = release
    assert Server(canned.url).about()["release"] == release


@pytest.mark.parametrize(
    "url",
    [
        *(
            "127.0.0.1:8000",
            "ftp://host",
            "http://",
            "",
            "http://:80",
            "http://[::1",
            "http://h:99999",
        ),
        *("http://a b", "http://me:secret@host", "http://host/v1?x=1", "http://host#there"),
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="not a URL such as"):
        Server(url)


def test_completions_come_in_order_with_their_log_probs(
    stub: Stub, folders: dict[str, Path]
) -> None:
    server = Server(stub.url)
    answers = server.generate(requests(4))
    assert len({answer.tokens for answer in answers}) == 4
    assert [one(server, seed=number) for number in range(4)] == answers
    for answer in answers:
        assert answer.versions == ("default",)
        assert answer.finished == (answer.tokens[-1] == 0)
        assert answer.logprobs == pytest.approx(scored(folders["qwen2"], answer), abs=1e-4)
    assert server.generate([]) == []


def test_more_requests_than_go_at_a_time(canned: Stub) -> None:
    answers = Server(canned.url).generate(requests(300))
    assert [a.tokens for a in answers[:3]] == [
        (199, 217, 22, 134, 263, 250),
        (70, 34, 132, 62, 255, 232),
        (30, 48, 45, 186, 88, 159),
    ]
    assert canned.asked.count("/inference/v1/generate") == 300


def test_tensors_are_taken_and_the_version_with_them(
    stub: Stub, folders: dict[str, Path], moved: Callable[..., Path]
) -> None:
    server = Server(stub.url)
    before, sums = one(server), server.checksums()
    server.load_tensors(moved(), "v1")
    after = one(server)
    assert (before.versions, after.versions) == (("default",), ("v1",))
    base = folders["qwen2"]
    assert after.logprobs == pytest.approx(scored(base, after, LAYER, 0.5), abs=1e-4)
    assert before.logprobs == pytest.approx(scored(base, before), abs=1e-4)
    new = server.checksums()
    assert {name for name in sums if sums[name] != new[name]} == {
        f"{PREFIX}{LAYER}{name}"
        for name in (
            *("self_attn.qkv_proj.weight", "self_attn.qkv_proj.bias", "self_attn.o_proj.weight"),
            *("mlp.gate_up_proj.weight", "mlp.down_proj.weight"),
            *("input_layernorm.weight", "post_attention_layernorm.weight"),
        )
    }
    assert stub.asked.count("/reset_prefix_cache") == 1


def test_checksums_are_of_the_bytes(stub: Stub, folders: dict[str, Path]) -> None:
    import hashlib

    from safetensors.numpy import load_file

    tensors = load_file(folders["qwen2"] / "model.safetensors")
    found = Server(stub.url).checksums()
    norm = hashlib.sha256(tensors["model.norm.weight"].tobytes()).hexdigest()
    assert found[f"{PREFIX}model.norm.weight"] == norm
    parts = [tensors[f"model.layers.0.self_attn.{n}_proj.weight"].tobytes() for n in "qkv"]
    joined = hashlib.sha256(b"".join(parts)).hexdigest()
    assert found[f"{PREFIX}model.layers.0.self_attn.qkv_proj.weight"] == joined
    table = tensors["model.embed_tokens.weight"].tobytes() + bytes(4 * 32 * (320 - 282))
    assert found[f"{PREFIX}model.embed_tokens.weight"] == hashlib.sha256(table).hexdigest()


def test_a_part_of_a_fused_layer_leaves_the_rest_undefined(
    stub: Stub, folders: dict[str, Path], moved: Callable[..., Path]
) -> None:
    """The trap that whoever publishes must not step into: no answer tells of it."""
    server, part = Server(stub.url), f"{LAYER}self_attn.q_proj"
    server.load_tensors(moved(part), "v1")
    answer = one(server)
    right = scored(folders["qwen2"], answer, part, 0.5)
    assert max(abs(a - b) for a, b in zip(answer.logprobs, right, strict=True)) > 0.1


def test_without_a_reset_a_known_prompt_has_the_old_weights(
    stub: Stub, moved: Callable[..., Path]
) -> None:
    server = Server(stub.url)
    before = one(server)
    stub.faults.keeps_cache = True
    server.load_tensors(moved(), "v1")
    assert one(server).logprobs == before.logprobs
    stub.faults.keeps_cache = False
    server.load_tensors(moved(), "v2")
    assert one(server).logprobs != before.logprobs


def test_adapters_by_name(stub: Stub, folders: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from modicum.models.adapters import quiet

    server = Server(stub.url)
    for number in range(2):
        model = AutoModelForCausalLM.from_pretrained(folders["qwen2"])
        with torch.no_grad(), quiet():
            adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.1 + number)
            adapted.save_pretrained(tmp_path / str(number), save_embedding_layers=False)
    bare = one(server)
    server.load_adapter("a0", tmp_path / "0", "v0")
    first = one(server, model="a0")
    server.load_adapter("a1", tmp_path / "1", "v1", old="a0")
    second = one(server, model="a1")
    assert (first.versions, second.versions) == (("v0",), ("v1",))
    assert len({bare.logprobs, first.logprobs, second.logprobs}) == 3
    assert one(server).logprobs == bare.logprobs
    with pytest.raises(UserError, match="The model `a0` does not exist"):
        one(server, model="a0")
    with pytest.raises(UserError, match="'a1' has already been loaded"):
        server.load_adapter("a1", tmp_path / "1", "v2")
    with pytest.raises(UserError, match=r"No adapter found for .*nowhere"):
        server.load_adapter("a3", tmp_path / "nowhere", "v3")


def test_a_file_that_was_half_written_stops_with_one_line(
    stub: Stub, moved: Callable[..., Path]
) -> None:
    server, folder = Server(stub.url), moved()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"collective_rpc.*failed") as error:
        server.load_tensors(folder, "v1")
    assert "\n" not in str(error.value)
    assert (stub.version, stub.awake.is_set()) == ("part of v1", True)
    with pytest.raises(ServerGone):  # vLLM's layers are gone by then
        one(server)


def test_a_server_that_was_started_again_or_is_anothers(
    stub: Stub, moved: Callable[..., Path]
) -> None:
    server = Server(stub.url)
    server.load_tensors(moved(), "v1")
    stub.restart()
    with pytest.raises(ServerGone, match="was started again"):
        server.load_tensors(moved(), "v2")
    Server(stub.url).load_tensors(moved(), "other")
    with pytest.raises(UserError, match="version other where v1 was published: another program"):
        server.load_tensors(moved(), "v2")


def test_a_cache_that_cannot_be_reset(canned: Stub, tmp_path: Path) -> None:
    canned.faults.cannot_reset = True
    with pytest.raises(UserError, match="cannot reset its prefix cache"):
        Server(canned.url).load_tensors(tmp_path, "v1")
    assert canned.version == "part of v1"
    assert canned.awake.is_set(), "it goes on for others"


def test_a_connection_that_breaks_is_asked_again(canned: Stub) -> None:
    server, expected = Server(canned.url), Server(canned.url).generate(requests(3))
    canned.faults.breaks_after, canned.num_drawn = 1, 0
    assert server.generate(requests(3)) == expected
    assert canned.asked.count("/inference/v1/generate") == 7


def test_a_server_that_dies_in_the_middle_is_gone(canned: Stub) -> None:
    canned.faults.dies_after = 5
    server = Server(canned.url)
    with pytest.raises(ServerGone):
        server.generate(requests(40))
    assert not server.alive()
    canned.faults.dies_after = -1
    canned.restart()
    assert server.generate(requests(2)) == Server(canned.url).generate(requests(2))


@pytest.mark.parametrize("what", ["about", "generate", "load_tensors", "checksums"])
def test_a_server_that_never_answers_is_gone_in_time(
    canned: Stub, tmp_path: Path, what: str
) -> None:
    canned.faults.silent = True
    arguments = {"generate": (requests(3),), "load_tensors": (tmp_path, "v1")}
    began = time.monotonic()
    with pytest.raises(ServerGone, match=r"did not answer within 0\.3 s"):
        getattr(Server(canned.url, 0.3), what)(*arguments.get(what, ()))
    assert time.monotonic() - began < 5


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerGone, match=r"/version: ConnectionRefusedError"):
        Server(url).about()


def test_the_first_failure_is_told_at_once(canned: Stub) -> None:
    """Not after the others have waited for their answers."""
    canned.faults.slow = 30.0
    bad = {**requests(1)[0], "token_ids": []}
    began = time.monotonic()
    with pytest.raises(UserError, match="draws one completion"):
        Server(canned.url).generate([*requests(20), bad])
    assert time.monotonic() - began < 10


def test_an_interrupt_is_heard_at_once(canned: Stub) -> None:
    canned.faults.slow = 30.0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before, began = signal.signal(signal.SIGALRM, interrupt), time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 2.0)
        with pytest.raises(KeyboardInterrupt):
            Server(canned.url).generate(requests(280))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ({"garbled": True}, UserError, "does not answer as vLLM does"),
        ({"aborts": True}, ServerGone, "broke off a completion: abort"),
        ({"missing": ("/inference/v1/generate",)}, UserError, "started with --enable-scale-out"),
    ],
)
def test_answers_that_are_none(
    canned: Stub, fault: dict[str, Any], error: type[Exception], match: str
) -> None:
    canned.faults = Faults(**fault)
    with pytest.raises(error, match=match):
        one(Server(canned.url))


def test_what_a_server_lacks_is_named(canned: Stub, tmp_path: Path) -> None:
    canned.faults.missing = ("/weight_info",)
    with pytest.raises(UserError, match=r"no /weight_info: it must be .* VLLM_SERVER_DEV_MODE=1"):
        Server(canned.url).load_tensors(tmp_path, "v1")
    canned.faults.missing = ("/v1/load_lora_adapter",)
    with pytest.raises(UserError, match="started with --enable-lora"):
        Server(canned.url).load_adapter("a", tmp_path, "v1")


@pytest.mark.parametrize("fault", ["wrong_version", "two_versions", "no_version"])
def test_every_version_of_a_completion_is_told(canned: Stub, fault: str) -> None:
    canned.faults = Faults(**{fault: True})
    canned.before = "v0"
    expected = {"wrong_version": ("another",), "two_versions": ("v0", "default"), "no_version": ()}
    assert one(Server(canned.url)).versions == expected[fault]


def test_what_is_asked_of_a_sleeping_server_waits_until_it_wakes(canned: Stub) -> None:
    server = Server(canned.url)
    server.sleep()
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(one(server)))
    thread.start()
    thread.join(0.3)
    assert answers == []
    server.wake()
    thread.join(10)
    assert len(answers) == 1


def test_a_key_is_sent(canned: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_stub import Handler

    heard = []
    answer = Handler.do_GET

    def listen(self: Handler) -> None:
        heard.append(self.headers["Authorization"])
        answer(self)

    monkeypatch.setattr(Handler, "do_GET", listen)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert Server(canned.url).alive()
    assert heard == ["Bearer secret"]


def test_one_that_answers_nothing_and_is_not_well_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's front goes on waiting for its connections when its engine was killed."""
    ended, well = threading.Event(), iter([True, False])
    server = Server("http://127.0.0.1:9")
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(server, "_generate", lambda _: ended.wait(20))
    monkeypatch.setattr(server, "alive", lambda: next(well))
    began = time.monotonic()
    with pytest.raises(ServerGone, match="answers nothing"):
        server.generate([{}, {}])
    assert 0.1 <= time.monotonic() - began < 10  # well at the first look
    ended.set()
