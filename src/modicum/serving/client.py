"""The client of a vLLM server: tokens in and out over HTTP, weights by files that it reads.

Source: vLLM 0.32, `vllm/entrypoints/scale_out/token_in_token_out`, `rl/online`, `serve/lora`, `serve/dev`."""

import json
import multiprocessing
import os
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modicum.types import Frozen, UserError

VLLM = tomllib.loads(Path(__file__).with_name("server.toml").read_text(encoding="utf-8"))
VERSIONS = (32, 34)
"""Versions 0.N of vLLM: from, and before. 0.31 has no checksums, and does not say which weights drew."""
FIRST = "default"  # the version that a server says before one was published
AT_ONCE = 256  # requests on their way
CONNECT_SECONDS, LOOK_SECONDS = 10.0, 15.0  # the second: between looks at one that is asked
AGAIN_SECONDS = (0.2, 1.0)  # before what may be asked twice is asked again
LEAST = -9999.0  # what vLLM says in place of a log-prob that is no number
GENERATE, ADAPT = "/inference/v1/generate", "/v1/load_lora_adapter"


class ServerGone(Exception):
    """The connection broke, or no answer came in time: what the server was asked may not be done."""


class Answer(Frozen):
    """A completion: `versions` are those of the weights that drew it, in order."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool  # by an end token, not by its length
    versions: tuple[str, ...]


class Server:
    """One server at a URL. Every call has a time limit: ServerGone when it passes or the connection
    breaks, UserError, one line, for what the server refuses."""

    def __init__(self, url: str, patience: float = 600.0) -> None:
        refused = UserError(f"server {url!r}: not a URL such as http://127.0.0.1:8000")
        try:
            split = urlsplit(url)
            right = split.scheme in ("http", "https") and split.hostname and split.port != 0
        except ValueError:  # a bracket without the other, a port that none can have
            raise refused from None
        if not right or re.search(r"[\s?#@]", url):
            raise refused
        self.url, self.patience = url.rstrip("/"), patience
        self.version = ""  # of the weights that were published last; nothing before that
        kind = HTTPSConnection if split.scheme == "https" else HTTPConnection
        self._connection = partial(kind, split.netloc)
        self._path = split.path.rstrip("/")

    def about(self) -> dict[str, Any]:
        """What it is: `release` of vLLM, `model`, its `root` and `max_model_len`, `dtype`, weight
        `version`. UserError where its version is not known, or its log-probs are of other settings."""
        release = self._told("/version", "version")
        number = re.match(r"0\.(\d+)\.", release)
        if not number or not VERSIONS[0] <= int(number[1]) < VERSIONS[1]:
            raise UserError.of("vllm_version", url=self.url, release=release, known=VERSIONS)
        card = self._told("/v1/models", "data")[0]  # adapters come after it
        config = self._told("/server_info?config_format=json", "vllm_config")["model_config"]
        if config.get("logprobs_mode") != "processed_logprobs":
            raise UserError(f"{self.url} must be started with --logprobs-mode processed_logprobs")
        told = {"model": card["id"], "root": card["root"], "max_model_len": card["max_model_len"]}
        told |= {"dtype": str(config.get("dtype")).removeprefix("torch.")}
        return {"release": release, **told, "version": self._told("/weight_info", "weight_version")}

    def generate(self, requests: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """The completion of every request (`token_ids`, `sampling_params` with n = 1, `model` for an
        adapter); the first failure ends it. With a seed the same comes again, so a request whose
        connection breaks is asked again."""
        found = dict[int, Answer]()
        with ThreadPool(min(AT_ONCE, len(requests)) or 1) as pool:
            coming = pool.imap_unordered(self._generate, enumerate(requests))
            while len(found) < len(requests):
                try:
                    found |= [coming.next(LOOK_SECONDS)]
                except multiprocessing.TimeoutError:  # one whose engine was killed answers nobody
                    if not self.alive():
                        raise ServerGone(f"{self.url} answers nothing, and is not well") from None
        return [found[place] for place in range(len(requests))]

    def load_tensors(self, folder: Path, version: str) -> None:
        """The server takes the tensors of `folder`, in checkpoint format, and says `version` from
        then on. A fused layer must come whole (docs/vllm.md)."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._load(version, {"/collective_rpc": body})

    def load_adapter(self, name: str, folder: Path, version: str, old: str = "") -> None:
        """The server takes a PEFT adapter under a name that it has never had, and drops `old`."""
        asked = {ADAPT: {"lora_name": name, "lora_path": str(folder)}}
        if old:
            asked["/v1/unload_lora_adapter"] = {"lora_name": old}
        self._load(version, asked)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the bytes of each of its tensors, by vLLM's names, which begin with the device."""
        return self._told("/weight_checker", "checksums", {"action": "checksum"})

    def sleep(self) -> None:
        """Weights to the host's memory, the cache dropped, until `wake`: others may use the GPU."""
        self._ask("/sleep?level=1&mode=wait", {})

    def wake(self) -> None:
        self._ask("/wake_up", {})

    def alive(self) -> bool:
        """Whether it says that it is healthy."""
        try:
            return self._call("/health", patience=min(CONNECT_SECONDS, self.patience))[0] == 200
        except (OSError, HTTPException):
            return False

    def _load(self, version: str, asked: Mapping[str, Mapping[str, Any]]) -> None:
        """Ask this while nothing is drawn. What is drawn later is of `version`; if this fails, of none."""
        found = self._told("/weight_info", "weight_version")
        if self.version and found != self.version:
            if found == FIRST:
                raise ServerGone(f"{self.url} was started again, and has its first weights")
            raise UserError.of("other_publisher", url=self.url, found=found, version=self.version)
        self._ask("/pause?mode=wait", {})
        try:
            self._label(f"part of {version}")
            for path, body in asked.items():
                self._ask(path, body)
            if not self._told("/reset_prefix_cache", "success", {}):
                raise UserError(f"{self.url} cannot reset its prefix cache, of the old weights")
            self._label(version)
        finally:
            self._ask("/resume", {})

    def _label(self, version: str) -> None:
        self._ask("/update_weight_version", {"new_version": version})
        self.version = version

    def _generate(self, numbered: tuple[int, Mapping[str, Any]]) -> tuple[int, Answer]:
        """The completion of a request, with its number."""
        number, request = numbered
        told = {"logprobs": 0} | dict(request["sampling_params"])
        (choice,) = self._told(GENERATE, "choices", {**request, "sampling_params": told})
        if choice["finish_reason"] not in ("stop", "length"):
            raise ServerGone(f"{self.url} broke off a completion: {choice['finish_reason']}")
        logprobs = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        if logprobs and min(logprobs) <= LEAST:
            raise UserError(f"{self.url} draws from logits that are not numbers (NaN or infinite)")
        versions = tuple(span["version"] for span in choice["weight_versions"] or ())
        finished = choice["finish_reason"] == "stop"
        return number, Answer(tuple(choice["token_ids"]), logprobs, finished, versions)

    def _told(self, path: str, key: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the answer has under `key`."""
        text = self._ask(path, body)
        try:
            return json.loads(text)[key]
        except (ValueError, KeyError, TypeError):
            raise UserError.of("no_vllm", at=f"{self.url}{path}", text=one_line(text)) from None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """The text of the answer to a GET, or to a POST of `body`."""
        where = f"{self.url}{path}"
        pauses = list(AGAIN_SECONDS) if body is None or path == GENERATE else []
        while True:
            try:
                status, text = self._call(path, body)
                break
            except TimeoutError:
                limits = f"{self.patience:g} s ({CONNECT_SECONDS:g} s for a connection)"
                raise ServerGone(f"{where} did not answer within {limits}") from None
            except (OSError, HTTPException) as error:
                if not pauses:
                    raise ServerGone(f"{where}: {one_line(repr(error))}") from None
                time.sleep(pauses.pop(0))
        if status == 200:
            return text
        why = one_line(_message(text))
        if status >= 500 and not self.alive():
            raise ServerGone(f"{where}: {why}")
        if status == 404 and why == "Not Found":
            need = VLLM["needs"].get(path, "VLLM_SERVER_DEV_MODE=1")
            raise UserError(f"{self.url} has no {path}: it must be started with {need}")
        raise UserError(f"{where}: {why}")

    def _call(
        self, path: str, body: Mapping[str, Any] | None = None, patience: float | None = None
    ) -> tuple[int, str]:
        """Status and text of an answer."""
        patience = self.patience if patience is None else patience
        key = os.environ.get("VLLM_API_KEY")
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        verb, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        with closing(self._connection(timeout=min(CONNECT_SECONDS, patience))) as connection:
            connection.connect()
            connection.sock.settimeout(patience)
            connection.request(verb, self._path + path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")


def _message(text: str) -> str:
    """What an answer that is no success says."""
    try:
        told = json.loads(text)
        return str(told["error"]["message"] if "error" in told else told["detail"])
    except (ValueError, TypeError, KeyError):
        return text


def one_line(text: str) -> str:
    """The beginning of a text, as one line."""
    return " ".join(text.split())[:300]
