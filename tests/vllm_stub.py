"""A stand-in for vLLM's server, version 0.32: its HTTP dialect around a small model of our own.

What it has in common with the real one, besides paths and JSON: a weight file that has only a part
of a fused layer leaves the rest of that layer undefined; a prompt that was seen before is answered
from the old weights until the prefix cache is reset; after a file that cannot be read it dies at the
next completion; adapters have names, and none is replaced; a version is said for every completion. `Faults` has what can be planted.

    with Stub(folder) as stub:
        Server(stub.url)

As a process, with vLLM's own arguments: `python vllm_stub.py --model DIR --port N`. Its environment
may hold VLLM_STUB_FAULTS, a JSON object, and VLLM_STUB_CANNED=1 for answers without a model, which
needs no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import threading
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

FUSED = {
    **{f"{name}_proj": ("qkv_proj", "qkv".index(name)) for name in "qkv"},
    **{f"{name}_proj": ("gate_up_proj", n) for n, name in enumerate(("gate", "up"))},
}
"""Layers of a checkpoint that vLLM keeps as one, and their places in it."""
PREFIX = "dp0:pp0:pcp0:tp0:"  # of a checksum's name, on one device
VOCABULARY = 64  # embeddings are padded to a multiple of it, with zeros
BASE = "base"  # the served model's name, where none is told


class Refused(Exception):
    """An answer that is no success: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Faults:
    """What goes wrong."""

    stale: bool = False  # weights are told to be loaded, and are not
    keeps_cache: bool = False  # the prefix cache is told to be reset, and is not
    cannot_reset: bool = False  # it says that the prefix cache could not be reset
    old_adapter: bool = False  # every new adapter is the first one under another name
    wrong_version: bool = False  # completions say another version than was published
    two_versions: bool = False  # weights changed while a completion was drawn
    no_version: bool = False  # completions do not say one
    other_base: bool = False  # one number of the base differs
    aborts: bool = False  # completions end as when another client pauses the server
    slow: float = 0.0  # seconds that every generation takes besides
    silent: bool = False  # connections are taken and nothing is answered
    garbled: bool = False  # the answer to a generation is no JSON
    dies_after: int = -1  # generations, then every connection breaks and the server is gone
    breaks_after: int = -1  # generations, then one connection breaks
    release: str = "0.32.0"
    missing: tuple[str, ...] = ()  # paths that this server does not have
    logprobs_mode: str = "processed_logprobs"


def fused_name(name: str) -> tuple[str, int]:
    """A parameter's name in vLLM, and its place among those that it is fused with."""
    *before, layer, kind = name.split(".") if "." in name else ("", name, "")
    fused, place = FUSED.get(layer, (layer, 0))
    return ".".join((*before, fused, kind)), place


class Weights:
    """A model with vLLM's ways: the numbers that it samples from, and how they are replaced."""

    def __init__(self, model: Any, tokenizer: Any, end_tokens: tuple[int, ...]) -> None:
        self.model, self.tokenizer, self.end_tokens = model, tokenizer, end_tokens
        self.adapters: dict[str, Path] = {}
        self.seen: dict[tuple[str, tuple[int, ...]], Any] = {}  # with what prompts are cached
        self.merged: dict[str, Any] = {}  # the model under every adapter that was used
        self.broken = False  # by weights that could not be read

    def load(self, folder: Path, stale: bool = False) -> None:
        """What vLLM's layerwise reload does; a layer that comes in part is undefined in the rest."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        files, self.broken = sorted(folder.glob("*.safetensors")), True
        if not files:
            raise Refused(500, f"Cannot find any model weights with `{folder}`")
        try:
            sent = {name: tensor for path in files for name, tensor in load_file(path).items()}
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        self.broken = False
        if stale:
            return
        fresh = deepcopy(self.model)
        own = dict(fresh.named_parameters())
        if unknown := sorted(set(sent) - set(own) - {"lm_head.weight"}):
            self.broken = True
            raise Refused(500, f"There is no module or parameter named '{unknown[0]}'")
        groups: dict[str, set[str]] = {}
        for name in own:
            groups.setdefault(fused_name(name)[0].rpartition(".")[0], set()).add(name)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for members in groups.values():
                for name in sorted(members):
                    if name in sent:
                        own[name].copy_(sent[name])
                    elif members & set(sent):
                        own[name].copy_(torch.randn(own[name].shape, generator=draw))
        # Cached prompts keep the model that they were run with.
        self.model, self.merged = fresh, {}

    def adapt(self, name: str, folder: Path) -> None:
        """Take an adapter, if it is one that vLLM knows."""
        path = folder / "adapter_config.json"
        if not path.is_file():
            raise Refused(404, f"Loading lora {name} failed: No adapter found for {folder}")
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("use_dora"):
            raise Refused(500, "vLLM does not yet support DoRA.")
        if config.get("modules_to_save"):
            raise Refused(500, "vLLM only supports modules_to_save being None")
        if isinstance(config.get("init_lora_weights"), str):
            raise Refused(500, f"vLLM does not support {config['init_lora_weights']!r}")
        self.adapters[name] = folder
        self.under(name)  # it is read now, whatever happens to its folder

    def under(self, name: str) -> Any:
        """The model under an adapter; without a name the base."""
        if not name:
            return self.model
        if name not in self.merged:
            import torch
            from peft import PeftModel

            from modicum.models.adapters import quiet

            with torch.random.fork_rng(devices=[]), quiet():
                adapted = PeftModel.from_pretrained(deepcopy(self.model), self.adapters[name])
                self.merged[name] = adapted.merge_and_unload()
        return self.merged[name]

    def draw(
        self, adapter: str, prompt: tuple[int, ...], asked: dict[str, Any]
    ) -> tuple[list[int], list[float], bool]:
        """Tokens, log-probs and whether an end token came."""
        import torch

        from modicum.config import Sampling
        from modicum.engine.base import Asked
        from modicum.engine.policy import make
        from modicum.engine.samplers import LocalSampler

        model = self.seen.setdefault((adapter, prompt), self.under(adapter))
        ends = tuple(asked.get("stop_token_ids") or ())
        ends += () if asked.get("ignore_eos") else self.end_tokens
        sampler = LocalSampler(make(model, torch.device("cpu")), self.tokenizer, ends)
        sampling = Sampling(
            temperature=asked.get("temperature", 1.0),
            top_p=asked.get("top_p", 1.0),
            top_k=max(0, asked.get("top_k", 0)),
            max_tokens=asked.get("max_tokens", 16),
            stop=tuple(asked.get("stop") or ()),
        )
        seed = asked["seed"] if asked.get("seed") is not None else random.random()
        ((made,),) = sampler.sample(Asked([prompt], [("vllm", seed)], 1, sampling))
        return list(made.tokens), list(made.logprobs), made.finished

    def checksums(self, packed: bool = False) -> dict[str, str]:
        """SHA-256 of every tensor, under vLLM's names and laid out as vLLM has them. `packed`: its CPU
        build keeps the weights of linear layers elsewhere, and empty tensors in their place."""
        import torch

        parts: dict[str, dict[int, Any]] = {}
        for name, tensor in self.model.named_parameters():
            fused, place = fused_name(name)
            if re.search(r"(embed_tokens|lm_head)\.weight$", name):
                tensor = torch.nn.functional.pad(tensor, (0, 0, 0, -len(tensor) % VOCABULARY))
            if packed and name.endswith("proj.weight"):
                tensor = tensor[:0]
            parts.setdefault(fused, {})[place] = tensor.detach()
        return {
            PREFIX + name: hashlib.sha256(
                torch.cat([found[n] for n in sorted(found)]).view(-1).view(torch.uint8).numpy()
            ).hexdigest()
            for name, found in parts.items()
        }


class Canned:
    """No model: tokens are a function of the seed. For tests of processes, which start at once."""

    def __init__(self) -> None:
        self.adapters: dict[str, Path] = {}
        self.seen: dict[Any, Any] = {}
        self.broken = False

    def load(self, folder: Path, stale: bool = False) -> None:
        pass

    def adapt(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder

    def draw(
        self, adapter: str, prompt: tuple[int, ...], asked: dict[str, Any]
    ) -> tuple[list[int], list[float], bool]:
        dice = random.Random(asked.get("seed"))
        tokens = [dice.randrange(2, 282) for _ in range(asked.get("max_tokens", 16))]
        return tokens, [-1.0] * len(tokens), False

    def checksums(self, packed: bool = False) -> dict[str, str]:
        return {PREFIX + "model.norm.weight": "0" * 64}


def weights_of(folder: Path | str, dtype: str = "float32", other: bool = False) -> Weights:
    """The weights of a model folder."""
    import torch

    from modicum.models.load import load

    loaded = load(str(folder), device="cpu")
    model = loaded.model.to(getattr(torch, dtype)).requires_grad_(False)
    if other:
        with torch.no_grad():
            next(iter(model.parameters()))[3].add_(1e-2)
    return Weights(model, loaded.tokenizer, loaded.end_tokens)


class Stub(ThreadingHTTPServer):
    """The server; `close` ends it, `restart` lets it begin again with the base's weights."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(
        self,
        folder: Path | str | None,
        faults: Faults | None = None,
        port: int = 0,
        dtype: str = "float32",
        process: bool = False,
        name: str = BASE,
        packed: bool = False,
    ) -> None:
        self.packed = packed
        self.folder, self.dtype, self.process, self.name = folder, dtype, process, name
        self.faults = faults or Faults()
        self.asked: list[str] = []  # paths, in order
        self.port = port
        self.begin()

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Base weights, no adapters, a version that was never set."""
        other = self.faults.other_base
        if self.folder is None:
            self.weights: Weights | Canned = Canned()
        else:
            self.weights = weights_of(self.folder, self.dtype, other)
        self.version, self.before, self.num_drawn = "default", "default", 0
        self.asleep, self.gone, self.lock = False, False, threading.RLock()
        self.awake = threading.Event()
        self.awake.set()
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", self.port), Handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Break off everything and listen no longer."""
        if self.process:
            os._exit(1)
        if not self.gone:
            self.gone = True
            self.awake.set()
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(2)
            self.shutdown()
            self.server_close()

    def restart(self) -> None:
        """What another process would be on the same port."""
        self.close()
        self.begin()

    # What is asked: one method a path, which gets the query and the body ----------------------

    def get_health(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return None

    def get_version(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return {"version": self.faults.release}

    def get_v1_models(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        card = {"object": "model", "owned_by": "vllm", "parent": None, "max_model_len": 256}
        cards = [{**card, "id": self.name, "root": str(self.folder)}]
        for name, folder in self.weights.adapters.items():
            cards.append({**card, "id": name, "root": str(folder), "parent": self.name})
        return {"object": "list", "data": cards}

    def get_server_info(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        if query.get("config_format") != "json":
            return {"vllm_config": "model=..., dtype=..."}
        config = {"dtype": f"torch.{self.dtype}", "logprobs_mode": self.faults.logprobs_mode}
        return {"vllm_config": {"model_config": config, "lora_config": {"max_lora_rank": 64}}}

    def get_weight_info(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return {"weight_version": self.version}

    def get_is_sleeping(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        return {"is_sleeping": self.asleep}

    def post_inference_v1_generate(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        name, prompt = body.get("model") or "", tuple(body["token_ids"])
        name = "" if name == self.name else name
        asked = body["sampling_params"]
        if not prompt or asked.get("n", 1) != 1:
            raise Refused(400, "the stub takes a prompt and draws one completion")
        time.sleep(self.faults.slow)
        self.awake.wait()
        with self.lock:
            if name and name not in self.weights.adapters:
                raise Refused(404, f"The model `{name}` does not exist.")
            self.num_drawn += 1
            if 0 <= self.faults.dies_after < self.num_drawn or self.weights.broken:
                self.close()
            if self.gone or self.num_drawn == self.faults.breaks_after + 1:
                raise ConnectionError
            tokens, logprobs, finished = self.weights.draw(name, prompt, asked)
            version = "another" if self.faults.wrong_version else self.version
            spans = [{"version": version, "start": 0, "end": len(tokens)}]
            if self.faults.two_versions and len(tokens) > 1:
                spans[0]["end"] = 1
                spans.insert(0, {"version": self.before, "start": 0, "end": 1})
                spans[1]["start"] = 1
        content = [
            {
                **{"token_id": token, "logprob": logprob, "rank": 1},
                "top_logprobs": [{"token_id": token, "logprob": logprob, "rank": 1}],
            }
            for token, logprob in zip(tokens, logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "finish_reason": "abort" if self.faults.aborts else "stop" if finished else "length",
            "stop_reason": None,
            "token_ids": tokens,
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": None if self.faults.no_version else spans,
            "logprobs": None if asked.get("logprobs") is None else {"content": content},
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        return {
            **{"request_id": "generate-tokens-1", "output_mode": "tokens", "created": 1},
            **{"model": name or self.name, "usage": usage, "choices": [choice]},
        }

    def post_pause(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        if query.get("mode", "abort") not in ("abort", "wait", "keep"):
            raise Refused(400, "Invalid pause mode")
        self.awake.clear()
        with self.lock:
            if query.get("clear_cache", "true") != "false" and not self.faults.keeps_cache:
                self.weights.seen.clear()
        return {"status": "paused"}

    def post_resume(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        self.awake.set()
        return {"status": "resumed"}

    def post_collective_rpc(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        if body.get("method") != "reload_weights":
            raise Refused(500, f"no method {body.get('method')}")
        if self.asleep:
            raise Refused(500, "CUDA error: an illegal memory access was encountered")
        with self.lock:
            try:
                self.weights.load(Path(body["kwargs"]["weights_path"]), self.faults.stale)
            except (OSError, ValueError, RuntimeError) as error:
                raise Refused(500, f"Call to collective_rpc method failed: {error}") from None
        return {"results": [None]}

    def post_reset_prefix_cache(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        with self.lock:
            if not (self.faults.keeps_cache or self.faults.cannot_reset):
                self.weights.seen.clear()
        return {"success": not self.faults.cannot_reset}

    def post_update_weight_version(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        with self.lock:
            self.before, self.version = self.version, body["new_version"]
        return {"success": True, "new_version": self.version}

    def post_weight_checker(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        if body.get("action") != "checksum":
            raise Refused(400, "the stub only knows action='checksum'")
        with self.lock:
            return {"checksums": self.weights.checksums(self.packed)}

    def post_v1_load_lora_adapter(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        name, folder = body["lora_name"], Path(body["lora_path"])
        adapters = self.weights.adapters
        with self.lock:
            if name in adapters or name == self.name:
                raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
            first = next(iter(adapters.values()), folder)
            if self.faults.old_adapter:
                self.first_adapter = first = getattr(self, "first_adapter", first)
            self.weights.adapt(name, first if self.faults.old_adapter else folder)
        return f"Success: LoRA adapter '{name}' added successfully."

    def post_v1_unload_lora_adapter(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        name = body["lora_name"]
        with self.lock:
            if self.weights.adapters.pop(name, None) is None:
                raise Refused(404, f"The lora adapter '{name}' cannot be found.")
            if isinstance(self.weights, Weights):
                self.weights.merged.pop(name, None)
        return f"Success: LoRA adapter '{name}' removed successfully."

    def post_sleep(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        self.awake.clear()
        with self.lock:
            self.asleep = True
            self.weights.seen.clear()
        return {"status": "sleeping", "level": int(query.get("level", 1))}

    def post_wake_up(self, query: dict[str, str], body: dict[str, Any]) -> Any:
        self.asleep = False
        self.awake.set()
        return {"status": "awake", "tags": None}


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def answer(self, verb: str) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        stub = self.server
        stub.asked.append(split.path)
        while stub.faults.silent and not stub.gone:
            time.sleep(0.05)
        method = getattr(stub, verb + split.path.replace("/", "_"), None)
        status, found = 200, None
        if method is None or split.path in stub.faults.missing:
            status, found = 404, {"detail": "Not Found"}
        else:
            try:
                found = method(query, json.loads(text) if text else {})
            except Refused as error:
                kind = "NotFoundError" if error.status == 404 else "BadRequestError"
                said = {"message": str(error), "type": kind, "param": None, "code": error.status}
                status, found = error.status, {"error": said}
            except ConnectionError:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(2)
                return
        body = b"" if found is None else json.dumps(found).encode()
        if isinstance(found, str):
            body = found.encode()  # as text, not as JSON
        if stub.faults.garbled and "generate" in split.path:
            body = body[: len(body) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer("get")

    def do_POST(self) -> None:
        self.answer("post")

    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--served-model-name", default=BASE)
    arguments, _ = parser.parse_known_args()
    faults = Faults(**json.loads(os.environ.get("VLLM_STUB_FAULTS", "{}")))
    canned = os.environ.get("VLLM_STUB_CANNED") == "1"
    dtype = "float32" if arguments.dtype == "auto" else arguments.dtype
    folder, name = None if canned else arguments.model, arguments.served_model_name
    Stub(folder, faults, arguments.port, dtype, process=True, name=name)
    threading.Event().wait()


if __name__ == "__main__":
    main()
