"""A server of our own as a process: how it begins and, whatever happens, ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from modicum.serving import child
from modicum.serving.child import ServerProcess
from modicum.serving.client import ServerGone
from modicum.types import UserError
from vllm_stub import Stub

HERE = Path(__file__).parent
REQUEST = {"token_ids": [40], "sampling_params": {"n": 1, "max_tokens": 6, "seed": 0}}
DRAWN = (199, 217, 22, 134, 263, 250)  # what the stand-in answers to it
ENGINE = "86399"  # seconds that the stand-in's own child sleeps, by which it is found


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[..., str]:
    """A program in the place of the other environment's interpreter: the stand-in, with a child of
    its own as vLLM has, after some lines of shell."""

    def make(*lines: str, end: bool = False, **faults: str) -> str:
        path = tmp_path / "python"
        stub = f'shift 2\nexec {sys.executable} {HERE / "vllm_stub.py"} "$@"'
        words = ["VLLM_STUB_CANNED=1", *(f"{name}='{text}'" for name, text in faults.items())]
        head = ["#!/bin/sh", f"echo $@ >{tmp_path}/said", f"env >{tmp_path}/env", *lines]
        if not end:
            head += [f"sleep {ENGINE} &", f"export {' '.join(words)}", stub]
        path.write_text("\n".join(head))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Begins children and ends them."""
    begun: list[ServerProcess] = []

    def make(python: str, **settings: Any) -> ServerProcess:
        told = {"log": tmp_path / "vllm.log", "patience": 5.0, "start_seconds": 60.0, **settings}
        begun.append(ServerProcess("model", python, **told))
        return begun[-1]

    yield make
    for each in begun:
        each.close()


def group(leader: int) -> list[psutil.Process]:
    """The processes of a group that live."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def leader_of(each: ServerProcess) -> int:
    assert each.process is not None
    return each.process.pid


def named(leader: int, word: str) -> psutil.Process:
    (found,) = [p for p in group(leader) if word in p.cmdline()]
    return found


def gone(leader: int, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while group(leader) and time.monotonic() < until:
        time.sleep(0.05)
    return not group(leader)


def test_it_starts_answers_and_ends(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess]
) -> None:
    each = made(interpreter())
    (answer,) = each.server.generate([REQUEST])
    assert answer.tokens == DRAWN
    leader = leader_of(each)
    words = [" ".join(process.cmdline()) for process in group(leader)]
    assert sorted(text.split()[1].rpartition("/")[2] for text in words) == sorted(
        ["-I", ENGINE, "vllm_stub.py"]
    )
    each.close()
    assert group(leader) == []
    each.close()  # once more is nothing


def test_what_it_is_told(
    interpreter: Callable[..., str],
    made: Callable[..., ServerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PYTHONPATH", "RANK", "MASTER_PORT", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "of-the-trainer")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    monkeypatch.setattr(child.shutil, "which", lambda name: f"/bin/{name}")  # a GPU is there
    settings = {"memory": 0.4, "sleep": True, "tensor_parallel": 2, "dtype": "bfloat16"}
    room = {"max_length": 512, "lora_rank": 20, "gpu": 1, "more": ("--block-size", "16")}
    each = made(interpreter(), **settings, **room)
    port = each.server.url.rpartition(":")[2]
    said = (tmp_path / "said").read_text().split()
    name = said[said.index("--served-model-name") + 1]
    assert name.startswith("modicum-")
    assert " ".join(said) == (
        f"-m vllm.entrypoints.openai.api_server --model model --served-model-name {name}"
        " --host 127.0.0.1 --logprobs-mode processed_logprobs --generation-config vllm"
        f" --port {port} --dtype bfloat16 --gpu-memory-utilization 0.4"
        " --tensor-parallel-size 2 --max-model-len 512 --max-lora-rank 32 --max-loras 2"
        " --enable-scale-out --enable-sleep-mode --enable-lora --block-size 16"
    )
    words = (tmp_path / "env").read_text().splitlines()
    assert "of-the-trainer" not in " ".join(words)
    assert {
        *("VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        *("CUDA_VISIBLE_DEVICES=5,6", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"),
    } <= set(words)


def test_nothing_is_compiled_without_a_gpu(
    interpreter: Callable[..., str],
    made: Callable[..., ServerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child.shutil, "which", lambda name: None)
    made(interpreter())
    said = (tmp_path / "said").read_text()
    ends = "--enable-scale-out --enforce-eager --no-enable-chunked-prefill"
    assert said.rstrip().endswith(f"--max-model-len -1 {ends}")


def test_it_is_killed_and_started_again(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    each = made(interpreter())
    old, leader = each.server, leader_of(each)
    named(leader, str(HERE / "vllm_stub.py")).kill()
    with pytest.raises(ServerGone):
        old.generate([REQUEST])
    assert gone(leader), "what a dead server had started has ended"
    each.restart()
    assert each.server.generate([REQUEST])[0].tokens == DRAWN
    assert each.server.url != old.url
    assert "keeper: the program ended (-9)" in (tmp_path / "vllm.log").read_text()


def test_it_dies_in_the_middle(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess]
) -> None:
    each = made(interpreter(VLLM_STUB_FAULTS='{"dies_after": 3}'))
    with pytest.raises(ServerGone):
        each.server.generate([REQUEST] * 8)
    assert gone(leader_of(each))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (
            [
                "echo starting; echo \"x: (ModuleNotFoundError: No module named 'vllm')\" >&2; exit 1"
            ],
            "ModuleNotFoundError: No module named 'vllm')",
        ),
        (
            [
                "echo '(Core pid=1)   File x, line 2' >&2",
                "echo '(Core pid=1) ERROR torch.cuda.OutOfMemoryError: CUDA out of memory.' >&2",
                "echo '(API pid=2) RuntimeError: Engine core initialization failed.' >&2; exit 1",
            ],
            "torch.cuda.OutOfMemoryError: CUDA out of memory.",
        ),
        (
            [
                "echo 'WARNING can cause `OSError: [Errno 24] Too many open files`' >&2",
                "echo 'ERROR [core] ValueError: Available memory is less' >&2; exit 1",
            ],
            "ValueError: Available memory is less",
        ),
        (["exit 3"], "it said nothing"),
        (["echo one; echo two; exit 3"], "two"),
    ],
)
def test_why_it_did_not_start_is_one_line(
    interpreter: Callable[..., str],
    made: Callable[..., ServerProcess],
    tmp_path: Path,
    lines: list[str],
    why: str,
) -> None:
    with pytest.raises(UserError) as error:
        made(interpreter(*lines, end=True))
    assert str(error.value) == f"vLLM did not start: {why}; its log is {tmp_path}/vllm.log"


def test_a_log_of_its_own_stays_only_where_it_is_needed(
    interpreter: Callable[..., str],
    made: Callable[..., ServerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child.tempfile, "gettempdir", lambda: str(tmp_path))
    each = made(interpreter(), log=None)
    assert [path.suffix for path in tmp_path.glob("modicum-*")] == [".log"]
    each.close()
    assert list(tmp_path.glob("modicum-*")) == []
    with pytest.raises(UserError, match="its log is"):
        made(interpreter("exit 1", end=True), log=None)
    assert len(list(tmp_path.glob("modicum-*"))) == 1


def test_a_server_that_never_answers_does_not_start(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess]
) -> None:
    python = interpreter(VLLM_STUB_FAULTS='{"silent": true}')
    began = time.monotonic()
    with pytest.raises(UserError, match=r"vLLM did not answer within 2 s; its log is"):
        made(python, start_seconds=2.0, patience=0.3)
    assert time.monotonic() - began < 30


def test_a_version_that_is_not_known(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess]
) -> None:
    with pytest.raises(UserError, match=r"is vLLM 0\.20\.0; known are those from 0\.32"):
        made(interpreter(VLLM_STUB_FAULTS='{"release": "0.20.0"}'))


def test_a_port_that_is_taken_in_between(
    interpreter: Callable[..., str],
    made: Callable[..., ServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another server answers there: it is not taken for ours."""
    with Stub(None) as other:
        ports = [other.port, child.free_port()]
        monkeypatch.setattr(child, "free_port", lambda: ports.pop(0))
        each = made(interpreter())
        assert each.server.url != other.url
        monkeypatch.setattr(child, "free_port", lambda: other.port)
        with pytest.raises(UserError, match="vLLM found its port taken 3 times"):
            made(interpreter())
        assert other.asked.count("/inference/v1/generate") == 0


def test_what_cannot_be_is_refused(
    made: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODICUM_VLLM_PYTHON", raising=False)
    with pytest.raises(UserError, match="give `python`, the interpreter that has vLLM, or set MOD"):
        made("")
    with pytest.raises(UserError, match=r"vLLM did not start: .*nowhere"):
        made("/nowhere/python")


def test_gpus_are_told_by_the_names_that_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert child.gpus(1, 2) == "1,2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert (child.gpus(0, 2), child.gpus(1, 1)) == ("GPU-a,GPU-b", "GPU-b")
    with pytest.raises(
        UserError, match="2 GPUs from number 1 on, and CUDA_VISIBLE_DEVICES is GPU-a"
    ):
        child.gpus(1, 2)


PARENT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a shell's background ignores it
import os, sys, time
from pathlib import Path
from modicum.serving.child import ServerProcess
each = ServerProcess("model", sys.argv[1], log=Path(sys.argv[2]), patience=5.0)
if (fork := os.fork()) == 0:  # a fork ends, and must not end the server
    sys.exit()
os.waitpid(fork, 0)
assert each.server.alive()
if os.fork() == 0:  # a fork lives on, and must not keep the server alive
    time.sleep(30)
    os._exit(0)
print(each.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_is_left(
    interpreter: Callable[..., str], tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, interpreter(), str(tmp_path / "log")]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert parent.stdout is not None
    try:
        leader = int(parent.stdout.readline())
        assert len(group(leader)) == 3
        parent.send_signal(number)
        assert gone(leader)
    finally:
        parent.kill()
        os.killpg(parent.pid, signal.SIGKILL)  # the fork
        parent.wait()
        parent.stdout.close()


@pytest.mark.slow
def test_a_server_that_does_not_want_to_end(
    interpreter: Callable[..., str], made: Callable[..., ServerProcess]
) -> None:
    each = made(interpreter("trap '' TERM"))
    leader, began = leader_of(each), time.monotonic()
    each.close()
    assert group(leader) == []
    assert 9 < time.monotonic() - began < 15


def test_the_keeper_ends_no_group_but_its_own(tmp_path: Path) -> None:
    """Started without a session of its own it makes one."""
    keeper = str(HERE.parent / "src" / "modicum" / "serving" / "keeper.py")
    command = [sys.executable, "-I", keeper, str(os.getpid()), str(shutil.which("true"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.read() == "keeper: the program ended (0)\n"
        assert process.wait() == -signal.SIGKILL
