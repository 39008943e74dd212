"""A sampler that owns its loop: completions from a server, to which changed weights are sent.

It stands for engines such as vLLM. The server is a thread with a model of its own; what
passes between the two are bytes.
"""

from __future__ import annotations

import json
import threading
from copy import deepcopy
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar
from urllib.request import urlopen

import torch
from safetensors.torch import load, save

from modicum.config import Compute, Sampling
from modicum.engine import Asked, Changed, Engine, Groups, Sampler
from modicum.engine.policy import make
from modicum.engine.samplers import LocalSampler, SamplerSettings
from modicum.models.load import Loaded
from modicum.types import Completion, Origin
from modicum.updates.base import Prepared


class Server(HTTPServer):
    """Answers `/weights` and `/sample` on a free port of this machine."""

    def __init__(self, model: Any, loaded: Loaded) -> None:
        self.model = deepcopy(model)
        engine = make(self.model, loaded.device)
        self.sampler = LocalSampler(engine, loaded.tokenizer, loaded.end_tokens)
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def weights(self, body: bytes) -> bytes:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            sent = load(body)
            for name, tensor in sent.items():
                own[name].copy_(tensor)
        self.sampler.follow(Changed({name: own[name] for name in sent}, -1))
        return b"{}"

    def sample(self, body: bytes) -> bytes:
        asked = json.loads(body)
        prompts, keys = ([tuple(item) for item in asked[name]] for name in ("prompts", "keys"))
        sampling = Sampling(**asked["sampling"])
        groups = self.sampler.sample(Asked(prompts, keys, asked["n"], sampling))
        rows = [
            [[c.tokens, c.logprobs, c.text, c.finished, asdict(c.origin)] for c in group]
            for group in groups
        ]
        return json.dumps(rows).encode()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = getattr(self.server, self.path[1:])(body)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


class HttpSampler(Sampler):
    """Asks a server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def _ask(self, what: str, body: bytes) -> bytes:
        host, port = self.server.server_address[:2]
        with urlopen(f"http://{host!s}:{port}/{what}", body, timeout=60) as answer:
            return answer.read()

    def sample(self, asked: Asked) -> Groups:
        told = {"prompts": asked.prompts, "keys": asked.keys, "n": asked.group_size}
        body = json.dumps(told | {"sampling": asdict(asked.sampling)})
        rows = json.loads(self._ask("sample", body.encode()))
        asked.progress(len(rows))
        return [
            tuple(
                Completion(tuple(t), tuple(p), text, done, origin=Origin(**origin))
                for t, p, text, done, origin in row
            )
            for row in rows
        ]

    def follow(self, changed: Changed) -> None:
        tensors = {name: t.detach().contiguous() for name, t in changed.tensors.items()}
        self._ask("weights", save(tensors))


class Http(SamplerSettings):
    """A server in a thread."""

    name: ClassVar[str] = "http"

    def begin(
        self,
        engine: Engine,
        loaded: Loaded,
        prepared: Prepared | None,
        compute: Compute,
        rollout_batch: int,
    ) -> Sampler:
        return HttpSampler(Server(loaded.model if prepared is None else prepared.model, loaded))
