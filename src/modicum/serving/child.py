"""A vLLM server of our own: started with the interpreter of another environment, ended with us.

`keeper` stands between, which ends the server when this process is gone, by `kill -9` too."""

import atexit
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modicum.serving import keeper
from modicum.serving.client import VLLM, Server, ServerGone, one_line
from modicum.types import UserError

MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` does not know its CPU build's name
PYTHON = "MODICUM_VLLM_PYTHON"  # the interpreter, where none is given
VISIBLE = "CUDA_VISIBLE_DEVICES"
START_SECONDS = 900.0  # a large model is read, and its graphs are captured
TRIES = 3  # a port that was free may be taken before the server has it
FAULT = re.compile(r"(?m)^(?!.*WARNING).*?(\b(?:\w+\.)*\w*(?:Error|Exception): .+(?:\n {2}\S.+)?)")


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def gpus(first: int, count: int) -> str:
    """Some of the GPUs that this process sees, as another has to be told."""
    seen = os.environ.get(VISIBLE) or ",".join(map(str, range(first + count)))
    names = seen.split(",")[first : first + count]
    if len(names) < count:
        raise UserError(f"vllm: {count} GPUs from number {first} on, and {VISIBLE} is {seen}")
    return ",".join(names)


def interpreter(python: str) -> str:
    """The Python of an environment that has vLLM: this one, or that of the variable."""
    found = python or os.environ.get(PYTHON)
    if not found:
        raise UserError(f"vllm: give `python`, the interpreter that has vLLM, or set {PYTHON}")
    return found


def require_vllm(python: str) -> None:
    """UserError where there is no such interpreter, or where it has no vLLM."""
    found = interpreter(python)
    asked = [found, "-c", "import importlib.util as i; print(bool(i.find_spec('vllm')))"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"vllm: {found} cannot be run: {one_line(str(error))}") from None
    if told.strip() != "True":
        raise UserError(f"vllm: {found} has no vLLM (scripts/vllm_env.sh makes one that has)")


@dataclass(eq=False)
class ServerProcess:
    """Starts when it is made. UserError, one line, if it does not; what it says is in its log."""

    model: str  # its folder
    python: str = ""  # of an environment that has vLLM; MODICUM_VLLM_PYTHON says which else
    memory: float = 0.5  # share of the GPU's memory that it may take
    sleep: bool = False  # whether it can be put to sleep
    tensor_parallel: int = 1
    dtype: str = "auto"
    max_length: int = -1  # of a prompt with its completion, in tokens; -1: what fits its memory
    lora_rank: int = 0  # the largest of its adapters; 0: it takes none
    gpu: int | None = None
    """The first of its `tensor_parallel` GPUs, as torch counts those of this process; None: vLLM's choice."""
    more: Sequence[str] = ()  # arguments of vLLM
    log: Path | None = None
    """Where its output is appended; None: a temporary file, removed when it has ended well."""
    patience: float = 600.0
    start_seconds: float = START_SECONDS
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._name = f"modicum-{secrets.token_hex(4)}"  # that no other server has
        self._log = self.log or Path(tempfile.gettempdir(), f"{self._name}.log")
        self.restart()

    def restart(self) -> None:
        """End the server, if it runs, and start it: with the base's weights, and another URL."""
        self.close()
        atexit.register(self.close)
        try:
            for _ in range(TRIES):
                if self._start(free_port()):
                    return
            raise UserError(f"vLLM found its port taken {TRIES} times; its log is {self._log}")
        except (UserError, OSError, KeyboardInterrupt):
            self.log = self._log  # stays, to be read
            self.close()
            raise

    def close(self) -> None:
        """End the server and all that it has started, and wait until they are gone. A fork of this
        process ends nothing: the keeper is no child of it."""
        process, self.process = self.process, None
        atexit.unregister(self.close)
        if process is not None:
            process.terminate()
            process.wait()  # the keeper kills what does not want to end
            if self.log is None:
                self._log.unlink(missing_ok=True)

    def arguments(self, port: int) -> list[str]:
        """vLLM's own arguments."""
        told = {
            **{"model": self.model, "served-model-name": self._name},
            **VLLM["arguments"],
            **{"port": port, "dtype": self.dtype, "gpu-memory-utilization": self.memory},
            **{"tensor-parallel-size": self.tensor_parallel, "max-model-len": self.max_length},
        }
        flags = ["--enable-scale-out"]
        if shutil.which("nvidia-smi") is None:
            flags += VLLM["without_gpu"]
        if self.sleep:
            flags.append("--enable-sleep-mode")
        if self.lora_rank:
            room = next((rank for rank in VLLM["ranks"] if rank >= self.lora_rank), self.lora_rank)
            told |= {"max-lora-rank": room, "max-loras": 2}  # the old one until the new one is in
            flags.append("--enable-lora")
        pairs = [text for key, value in told.items() for text in (f"--{key}", str(value))]
        return [*pairs, *flags, *self.more]

    def _start(self, port: int) -> bool:
        """Start it and wait until it answers by its name; False if another program has its port."""
        kept = {key: text for key, text in os.environ.items() if key not in VLLM["dropped"]}
        seen = {} if self.gpu is None else {VISIBLE: gpus(self.gpu, self.tensor_parallel)}
        command = [sys.executable, "-I", keeper.__file__, str(os.getpid())]
        command += [interpreter(self.python), "-m", MODULE, *self.arguments(port)]
        env = VLLM["defaults"] | kept | VLLM["given"] | seen
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        how |= {"env": env, "start_new_session": True}
        with self._log.open("ab") as output:
            began = output.tell()
            self.process = subprocess.Popen(command, stdout=output, **how)
        self.server = Server(f"http://127.0.0.1:{port}", self.patience)
        until = time.monotonic() + self.start_seconds
        while self.process.poll() is None:
            with suppress(ServerGone):
                if self.server.alive() and self.server.about()["model"] == self._name:
                    return True
            if time.monotonic() > until:
                raise UserError.of("no_answer", seconds=self.start_seconds, log=self._log)
            time.sleep(0.2)
        text = self._log.read_bytes()[began:].decode(errors="replace")
        if "address already in use" in text.lower():
            return False
        lines = [line for line in text.splitlines() if line and not line.startswith("keeper:")]
        fault = FAULT.search(text)
        why = one_line(fault[1] if fault else lines[-1] if lines else "it said nothing")
        raise UserError(f"vLLM did not start: {why}; its log is {self._log}")
