"""vLLM itself as a child: what the stand-in of the other tests stands for (make test-vllm)."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from modicum.models.adapters import quiet
from modicum.models.load import TINY
from modicum.serving.child import PYTHON, ServerProcess
from modicum.serving.client import Answer, Server, ServerGone
from modicum.types import UserError
from test_serving_child import gone, group, leader_of
from vllm_stub import Stub

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not os.environ.get(PYTHON), reason=f"{PYTHON} names no interpreter"),
]
PROMPT = [40, 41, 42, 43, 44, 45, 46, 47] * 5
CLOSE = 5e-5  # nats, in fp32; 6e-6 was measured
SETTINGS: dict[str, Any] = {"dtype": "float32", "max_length": 256, "lora_rank": 8, "memory": 0.1}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the tiny base, which a test may have moved or started again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        made = ServerProcess(str(TINY), log=tmp_path_factory.mktemp("vllm") / "log", **SETTINGS)
        yield made
        made.close()


@pytest.fixture
def server(child: ServerProcess) -> Server:
    return child.server


@pytest.fixture
def model() -> Any:
    """What the library makes of the same folder."""
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def drawn(server: Server, count: int = 4, seed: int = 0, **more: Any) -> list[Answer]:
    settings = {"n": 1, "temperature": 1.0, "max_tokens": 12, **more.pop("settings", {})}
    rows = [{"sampling_params": settings | {"seed": seed + n}, **more} for n in range(count)]
    return server.generate([{"token_ids": PROMPT, **row} for row in rows])


@torch.no_grad()
def off(model: Any, answers: Sequence[Answer], temperature: float = 1.0) -> float:
    """The largest difference between the server's log-probs and the library's."""
    worst = 0.0
    for answer in answers:
        logits = model(input_ids=torch.tensor([[*PROMPT, *answer.tokens]])).logits[0]
        found = (logits / temperature).log_softmax(-1)
        for place, (token, said) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            worst = max(worst, abs(float(found[len(PROMPT) - 1 + place, token]) - said))
    return worst


def publish(server: Server, tensors: dict[str, torch.Tensor], folder: Path, version: str) -> None:
    folder.mkdir()
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    server.load_tensors(folder, version)


def whole(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def moved(model: Any, part: str) -> dict[str, torch.Tensor]:
    """Tensors of a model, moved in place."""
    draw = torch.Generator().manual_seed(0)
    found = {name: p for name, p in whole(model).items() if part in name}
    for tensor in found.values():
        tensor.add_(0.05 * torch.randn(tensor.shape, generator=draw))
    return found


def test_the_same_seed_draws_the_same(server: Server, model: Any) -> None:
    first, again, others = drawn(server, 8), drawn(server, 8), drawn(server, 8, seed=8)
    assert first == again != others
    assert len({answer.tokens for answer in first}) > 4
    assert off(model, first) < CLOSE
    cooler = drawn(server, settings={"temperature": 0.7})
    assert off(model, cooler, 0.7) < CLOSE
    short = drawn(server, settings={"max_tokens": 2})
    assert {answer.finished for answer in first + short} == {True, False}
    assert all(answer.finished == (answer.tokens[-1] == 0) for answer in first + short)


def test_it_says_what_it_is(child: ServerProcess, server: Server) -> None:
    told = server.about()
    assert told["root"] == str(TINY) == child.model
    assert (told["dtype"], told["max_model_len"]) == ("float32", 256)


def test_a_layer_is_published(server: Server, model: Any, tmp_path: Path) -> None:
    drawn(server)  # so that the prompt is in the prefix cache
    publish(server, whole(model), tmp_path / "base", "base")
    publish(server, moved(model, "layers.5."), tmp_path / "layer", "v1")
    answers = drawn(server)
    assert {answer.versions for answer in answers} == {("v1",)}
    assert off(model, answers) < CLOSE


@pytest.mark.parametrize("part", ["self_attn.q_proj.weight", "mlp.up_proj"])
def test_a_part_of_a_fused_layer_leaves_the_rest_undefined(
    server: Server, model: Any, tmp_path: Path, part: str
) -> None:
    """The trap is still there, and the whole base mends what it broke. Of all layers: the memory that
    one alone is given may happen to have what is right."""
    publish(server, whole(model), tmp_path / "base", "base")
    publish(server, moved(model, part), tmp_path / "part", "v1")
    try:
        assert off(model, drawn(server)) > 0.05
    except UserError as error:
        assert "draws from logits that are not numbers" in str(error)
    publish(server, whole(model), tmp_path / "again", "v2")
    assert off(model, drawn(server)) < CLOSE


def test_adapters_by_name(server: Server, model: Any, tmp_path: Path) -> None:
    import peft

    publish(server, whole(model), tmp_path / "base", "base")
    bare, old = drawn(server), ""
    for number in range(2):
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        with torch.no_grad(), quiet():
            config = peft.LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"])
            adapted: Any = peft.get_peft_model(base, config).eval()
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(number))
            adapted.save_pretrained(tmp_path / str(number), save_embedding_layers=False)
        server.load_adapter(f"a{number}", tmp_path / str(number), f"v{number}", old)
        old = f"a{number}"
        answers = drawn(server, model=old)
        assert {answer.versions for answer in answers} == {(f"v{number}",)}
        assert off(adapted, answers) < CLOSE
        assert answers != bare
    with pytest.raises(UserError, match="The model `a0` does not exist"):
        drawn(server, model="a0")
    assert drawn(server)[0].tokens == bare[0].tokens


def test_checksums_are_of_the_bytes(server: Server, model: Any, tmp_path: Path) -> None:
    """Those of what is not repacked, which a CPU does with the weights of linear layers."""
    publish(server, whole(model), tmp_path / "base", "base")
    own = whole(model)
    found = {
        name.rpartition(":")[2].replace(".base_layer.", "."): digest
        for name, digest in server.checksums().items()
    }
    assert len(found) == 44
    norms = [name for name in found if "norm" in name]
    assert len(norms) == 13
    for name in norms:
        assert found[name] == hashlib.sha256(own[name].numpy().tobytes()).hexdigest()
    table = own["model.embed_tokens.weight"].numpy().tobytes() + bytes(4 * 128 * (320 - 282))
    assert found["model.embed_tokens.weight"] == hashlib.sha256(table).hexdigest()


def test_sleep_loses_nothing(server: Server, model: Any, tmp_path: Path) -> None:
    publish(server, moved(model, "layers.5."), tmp_path / "layer", "v1")
    before = drawn(server)
    server.sleep()
    server.wake()
    assert drawn(server) == before


def keys_of(found: Any) -> Any:
    """The names in an answer, without its numbers."""
    if isinstance(found, dict):
        return {name: keys_of(held) for name, held in found.items()}
    return [keys_of(found[0])] if isinstance(found, list) and found else None


def within(part: Any, all_of: Any) -> bool:
    """Whether all names of one answer are in the other, at the same places."""
    if isinstance(part, dict):
        return isinstance(all_of, dict) and all(
            name in all_of and within(held, all_of[name]) for name, held in part.items()
        )
    return part is None or within(part[0], all_of[0])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/version", None),
        ("/v1/models", None),
        ("/server_info?config_format=json", None),
        ("/weight_info", None),
        ("/pause?mode=wait", {}),
        ("/reset_prefix_cache", {}),
        ("/resume", {}),
        ("/sleep?level=1&mode=wait", {}),
        ("/wake_up", {}),
        ("/is_sleeping", None),
        ("/update_weight_version", {"new_version": "v3"}),
        (
            "/inference/v1/generate",
            {"token_ids": [40], "sampling_params": {"n": 1, "max_tokens": 2, "logprobs": 0}},
        ),
        ("/v1/unload_lora_adapter", {"lora_name": "nobody"}),
        ("/nowhere", None),
    ],
)
def test_the_stand_in_answers_alike(server: Server, path: str, body: Any) -> None:
    """It says nothing that vLLM does not say, under the same names and with the same status."""
    import json

    with Stub(None) as stub:
        answers = [each._call(path, body) for each in (Server(stub.url), server)]
    (status, text), (expected, real) = answers
    assert status == expected
    assert within(keys_of(json.loads(text)), keys_of(json.loads(real))), real


@pytest.mark.parametrize("word", ["api_server", "EngineCore"])
def test_it_is_killed_and_started_again(child: ServerProcess, word: str) -> None:
    """The process that answers, and the one that has the weights."""
    old, leader = child.server, leader_of(child)
    (process,) = [
        p
        for p in group(leader)
        if word in f"{p.name()} {' '.join(p.cmdline())}"
        and "keeper.py" not in " ".join(p.cmdline())
    ]
    process.kill()
    with pytest.raises(ServerGone):
        drawn(old)
    assert gone(leader, 60.0)
    child.restart()
    first = drawn(child.server)
    assert {answer.versions for answer in first} == {("default",)}
    assert first == drawn(child.server)


PARENT = """
import sys, time
from pathlib import Path
from modicum.serving.child import ServerProcess
each = ServerProcess(sys.argv[1], log=Path(sys.argv[2]), memory=0.1, max_length=256)
print(each.process.pid, flush=True)
time.sleep(600)
"""


def test_no_orphan_is_left(child: ServerProcess, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(TINY), str(tmp_path / "log")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    with parent:
        leader = int(parent.stdout.readline())
        below = psutil.Process(leader).children(recursive=True)
        assert len(below) > 1
        parent.send_signal(signal.SIGKILL)
        assert gone(leader, 60.0)
        psutil.wait_procs(below, timeout=20.0)
        assert [process for process in below if process.is_running()] == []
