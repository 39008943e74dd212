"""The client of a vLLM server: tokens in and out over HTTP, weights by files that it reads.

Source: vLLM 0.32, `vllm/entrypoints/scale_out/token_in_token_out`, `rl/online`, `serve/lora`, `serve/dev`.
"""

import http.client
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modicum.types import UserError

KNOWN = ((0, 32), (0, 34))
"""Versions of vLLM: from, and before. 0.31 has no checksums, and does not say which weights drew."""
FIRST = "default"  # the version that a server says before one was published
AT_ONCE = 256  # requests on their way
CONNECT_SECONDS = 10.0
AGAIN_SECONDS = (0.2, 1.0)  # before what may be asked twice is asked again
LEAST = -9999.0  # what vLLM says in place of a log-prob that is no number
NEEDS = {
    "/inference/v1/generate": "--enable-scale-out",
    "/v1/load_lora_adapter": "--enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
}
"""What a server lacks that does not have a path; of all others VLLM_SERVER_DEV_MODE."""


class ServerGone(Exception):
    """The connection broke, or no answer came in time: what the server was asked may not be done."""


@dataclass(frozen=True)
class Answer:
    """A completion: `versions` are those of the weights that drew it, in order."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool  # by an end token, not by its length
    versions: tuple[str, ...]


class Server:
    """One server at a URL. Every call has a time limit: ServerGone when it passes or the connection
    breaks, UserError, one line, for what the server refuses."""

    def __init__(self, url: str, patience: float = 600.0) -> None:
        split = urlsplit(url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise UserError(f"server {url!r}: not a URL such as http://127.0.0.1:8000")
        self.url, self.patience = url.rstrip("/"), patience
        self.version = ""
        """Of the weights that were published last; nothing before that."""
        self._split = urlsplit(self.url)
        self._open: set[http.client.HTTPConnection] = set()
        self._stopped = threading.Event()

    def about(self) -> dict[str, Any]:
        """What it is: `release` of vLLM, `model`, its `root` and `max_model_len`, `dtype`, weight
        `version`. UserError where its version is not known, or its log-probs are of other settings."""
        release, card = self.release(), self.card()
        config = self._get("/server_info?config_format=json", "vllm_config")["model_config"]
        if config.get("logprobs_mode") != "processed_logprobs":
            raise UserError(f"{self.url} must be started with --logprobs-mode processed_logprobs")
        told = {"model": card["id"], "root": card["root"], "max_model_len": card["max_model_len"]}
        told |= {"dtype": str(config.get("dtype")).removeprefix("torch.")}
        return {"release": release, **told, "version": self._get("/weight_info", "weight_version")}

    def release(self) -> str:
        """Its version of vLLM, if that is known."""
        release = str(self._get("/version", "version"))
        found = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
        if not KNOWN[0] <= found < KNOWN[1]:
            first, after = (".".join(map(str, end)) for end in KNOWN)
            raise UserError(
                f"{self.url} is vLLM {release}; known are those from {first}, before {after}"
                " (scripts/vllm_env.sh installs one)"
            )
        return release

    def card(self) -> dict[str, Any]:
        """What it says of the model that it serves."""
        return self._get("/v1/models", "data")[0]  # adapters come after it

    def generate(
        self, requests: Sequence[Mapping[str, Any]], progress: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """The completion of every request (`token_ids`, `sampling_params` with n = 1, `model` for an
        adapter). `progress` is told how many are done. With a seed the same comes again, so a request
        whose connection breaks is asked again."""
        pool = ThreadPoolExecutor(min(AT_ONCE, len(requests)) or 1)
        futures = [pool.submit(self._generate, request) for request in requests]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress is not None:
                    progress(count)
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._hang_up()  # else, after a failure, the others would wait for their answers
            pool.shutdown()
            self._stopped.clear()

    def load_tensors(self, folder: Path, version: str) -> None:
        """The server takes the tensors of `folder`, in checkpoint format, and says `version` from
        then on. A fused layer must come whole (docs/vllm.md)."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        with self._paused(version):
            self._ask("/collective_rpc", body)

    def load_adapter(self, name: str, folder: Path, version: str, old: str = "") -> None:
        """The server takes a PEFT adapter under a name that it has never had, and drops `old`."""
        with self._paused(version):
            self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            if old:
                self._ask("/v1/unload_lora_adapter", {"lora_name": old})

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the bytes of each of its tensors, by vLLM's names. Those of several devices begin
        with the device."""
        found = self._told("/weight_checker", {"action": "checksum"}, "checksums")
        names = {name: name.rpartition(":")[2].replace(".base_layer.", ".") for name in found}
        one = len(set(names.values())) == len(names)
        return {names[name] if one else name: digest for name, digest in found.items()}

    def sleep(self) -> None:
        """Weights to the host's memory, the cache dropped, until `wake`: others may use the GPU."""
        self._ask("/sleep?level=1&mode=wait", {})

    def wake(self) -> None:
        self._ask("/wake_up", {})

    @contextmanager
    def _paused(self, version: str) -> Iterator[None]:
        """Nothing is drawn in here. What is drawn afterwards is of `version`; if this fails, of none."""
        found = self._get("/weight_info", "weight_version")
        if self.version and found != self.version:
            if found == FIRST:
                raise ServerGone(f"{self.url} was started again, and has its first weights")
            raise UserError(
                f"{self.url} has weights of version {found} where {self.version} was published:"
                " another program publishes there"
            )
        self._ask("/pause?mode=wait", {})
        try:
            self._label(f"part of {version}")
            yield
            self._reset()
            self._label(version)
        except (UserError, KeyboardInterrupt):
            with suppress(ServerGone, UserError):  # the first error is the one to tell
                self._ask("/resume", {})
            raise
        self._ask("/resume", {})

    def _label(self, version: str) -> None:
        self._ask("/update_weight_version", {"new_version": version})
        self.version = version

    def _reset(self) -> None:
        """Forget what prompts were run to: their states are of the old weights."""
        for seconds in (*AGAIN_SECONDS, 0.0):
            if self._told("/reset_prefix_cache", {}, "success"):
                return
            self._stopped.wait(seconds)
        raise UserError(f"{self.url} cannot reset its prefix cache, which is of old weights")

    def _generate(self, request: Mapping[str, Any]) -> Answer:
        told = {"logprobs": 0} | dict(request["sampling_params"])
        (choice,) = self._told(
            "/inference/v1/generate", {**request, "sampling_params": told}, "choices", again=True
        )
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerGone(f"{self.url} broke off a completion: {choice['finish_reason']}")
        logprobs = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        if logprobs and min(logprobs) <= LEAST:
            raise UserError(f"{self.url} draws from logits that are not numbers (NaN or infinite)")
        versions = tuple(span["version"] for span in choice["weight_versions"] or ())
        finished = choice["finish_reason"] == "stop"
        return Answer(tuple(choice["token_ids"]), logprobs, finished, versions)

    def _get(self, path: str, key: str) -> Any:
        return self._told(path, None, key, again=True)

    def _told(
        self, path: str, body: Mapping[str, Any] | None, key: str, again: bool = False
    ) -> Any:
        """What an answer has under `key`."""
        text = self._ask(path, body, again)
        try:
            return json.loads(text)[key]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.url}{path} does not answer as vLLM does: {_line(text)}"
            ) from None

    def _ask(self, path: str, body: Mapping[str, Any] | None, again: bool = False) -> str:
        """The text of the answer to a GET, or to a POST of `body`. `again`: it may be asked twice."""
        pauses = list(AGAIN_SECONDS) if again else []
        while True:
            try:
                status, text = self._call(path, body)
                break
            except TimeoutError:
                limit = f"{self.patience:g} s"
                raise ServerGone(f"{self.url}{path} did not answer within {limit}") from None
            except (OSError, http.client.HTTPException) as error:
                if not pauses or self._stopped.wait(pauses.pop(0)):
                    raise ServerGone(f"{self.url}{path}: {_line(repr(error))}") from None
        if status == 200:
            return text
        if status >= 500 and not self.alive():
            raise ServerGone(f"{self.url}{path}: {_line(_message(text))}")
        if status == 404 and _message(text) == "Not Found":
            need = NEEDS.get(path.partition("?")[0], "VLLM_SERVER_DEV_MODE=1")
            raise UserError(f"{self.url} has no {path}: it must be started with {need}")
        raise UserError(f"{self.url}{path}: {_line(_message(text))}")

    def alive(self) -> bool:
        """Whether it says that it is healthy."""
        try:
            limit = min(CONNECT_SECONDS, self.patience)
            return self._call("/health", None, limit)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _call(
        self, path: str, body: Mapping[str, Any] | None, patience: float | None = None
    ) -> tuple[int, str]:
        secure = self._split.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        assert self._split.hostname is not None
        patience = self.patience if patience is None else patience
        limit = min(CONNECT_SECONDS, patience)
        connection = kind(self._split.hostname, self._split.port, timeout=limit)
        key = os.environ.get("VLLM_API_KEY")
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._open.add(connection)
        try:
            try:
                connection.connect()
            except TimeoutError:
                raise ConnectionError(f"no connection within {limit:g} s") from None
            if self._stopped.is_set():
                raise ConnectionError("hung up")
            connection.sock.settimeout(patience)
            data = None if body is None else json.dumps(body)
            verb = "GET" if body is None else "POST"
            connection.request(verb, self._split.path + path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            self._open.discard(connection)
            connection.close()

    def _hang_up(self) -> None:
        """Break off all calls that are on their way."""
        self._stopped.set()
        for connection in list(self._open):
            with suppress(OSError, AttributeError):  # not yet connected, or no longer
                connection.sock.shutdown(2)


def _message(text: str) -> str:
    """What an answer that is no success says."""
    try:
        told = json.loads(text)
        error = told.get("error", told.get("detail", text))
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, AttributeError, KeyError):
        return text


def _line(text: str) -> str:
    """The beginning of a text, as one line."""
    return " ".join(text.split())[:300]
