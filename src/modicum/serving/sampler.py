"""Samplers that ask vLLM servers: `vllm` starts one of its own, `server` uses those that are there.

Weights are sent when the next completions are asked for (`publish`) and proved to be there (`proof`). What is
drawn depends on keys alone: the seed of a request is 31 bits of the SHA-256 of key and member, so that a server
that was started again gives with the same weights what the old one would have given, but for rounding.
"""

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch.distributed as dist

from modicum.config import Compute, Sampling
from modicum.engine.base import Changed, Engine, Prompts, Sampler
from modicum.engine.samplers import SamplerSettings, ends_within
from modicum.engine.text import Texts
from modicum.limits import Limits, Positive
from modicum.models.load import Loaded, inner
from modicum.serving.child import Child
from modicum.serving.client import Answer, Server, ServerGone
from modicum.serving.proof import ServerStopped, compare, require_versions
from modicum.serving.publish import FOLDER, Publisher
from modicum.types import Completion, Origin, UserError
from modicum.updates.base import Prepared

Asked = Sequence[Sequence[Mapping[str, Any]]]  # requests, group by group
TRIES, WAIT = 3, 30.0
"""How often completions are asked for where a server goes, and seconds until one is there again."""
SHARED = Path("/dev/shm")  # memory, as a folder


def seed_of(key: Sequence[object], member: int) -> int:
    """31 bits that depend on every part of a key, and on the member."""
    whole = "\x1f".join(map(str, (*key, member)))
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:4], "big") >> 1


@dataclass(eq=False)
class ServedSampler(Sampler):
    """Draws with servers, which share the prompts; at most `rows` completions are on their way at a time."""

    loaded: Loaded
    publisher: Publisher
    rows: int
    servers: Sequence[Server] = ()
    start: Callable[[], Child] | None = None  # of a server of its own, when the first prompt comes
    sleeps: bool = False  # whether that sleeps while others need its memory
    place: Path | None = None  # where what is sent lies

    def __post_init__(self) -> None:
        self.changed, self.dirty = Changed({}, -1), set[str]()
        self.child: Child | None = None
        self.folder: Path | None = None
        self.count = self.compared = 0  # what was sent so far; tensors that the last proof compared
        self.awake = False
        self.seconds = self.bytes = 0.0
        self._forget()

    def _forget(self) -> None:
        """Servers have nothing but their checkpoint."""
        self.version = self.adapter = ""  # what they draw from, and what they call it
        self.publisher.sent = {}

    def metrics(self) -> dict[str, float]:
        """Of what was sent since this was last asked."""
        told = {"time/sync_seconds": self.seconds, "sync/bytes": self.bytes}
        self.seconds = self.bytes = 0.0
        return told

    def close(self) -> None:
        """End what it has started, and remove what it has written."""
        if self.child is not None:
            self.child.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.child = self.folder = None

    def follow(self, changed: Changed) -> None:
        """What may be otherwise is sent when it is sampled from."""
        self.changed = changed
        self.dirty |= changed.tensors.keys()

    def prove(self) -> None:
        ours = self.publisher.tensors(self.publisher.modules)
        with self._up():
            self.compared = min(compare(s.checksums(), ours, s.url) for s in self.servers)

    def sample(
        self,
        prompts: Prompts,
        keys: Sequence[tuple[object, ...]],
        group_size: int,
        sampling: Sampling,
        keep_trunk: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """A request for every completion, which ends here where a stop string does."""
        if sampling.top_p < 1 or sampling.top_k:
            raise UserError("a server cuts top-k and top-p in a way of its own: leave them out")
        texts = Texts(self.loaded.tokenizer, self.loaded.end_tokens, sampling.stop or ())
        settings = sampling.temperature, sampling.top_p, sampling.top_k
        origin = Origin(self.changed.version, *settings)
        given = {"n": 1, "logprobs": 0, "temperature": sampling.temperature}
        given["stop_token_ids"] = [*self.loaded.end_tokens]
        given["max_tokens"] = sampling.max_tokens
        groups: list[tuple[Completion, ...]] = []
        part = max(1, self.rows // group_size)
        for start in range(0, len(prompts), part):
            numbers = range(start, min(start + part, len(prompts)))
            seeds = [[seed_of(keys[n], member) for member in range(group_size)] for n in numbers]
            asked = [
                [{"token_ids": [*prompts[n]], "sampling_params": {**given, "seed": s}} for s in own]
                for n, own in zip(numbers, seeds, strict=True)
            ]
            drawn = self._draw(asked, origin.weights)
            groups += [_completions(found, texts, origin, sampling.max_tokens) for found in drawn]
            if progress is not None:
                progress(len(groups))
        return groups

    def _draw(self, asked: Asked, version: str) -> list[list[Answer]]:
        """Answers from servers that have this version; asked for again where a server goes."""
        for left in reversed(range(TRIES)):
            try:
                with self._up():
                    self._publish(version)
                    count = len(self.servers)
                    parts = self._each(lambda n, server: self._ask(server, asked[n::count]))
                break
            except ServerGone as error:
                if not left:
                    raise ServerStopped(f"{error}; --resume goes on once it is there") from None
                self._revive()
        for server, answers in zip(self.servers, parts, strict=True):
            require_versions((a.versions for group in answers for a in group), version, server.url)
        return [parts[n % count][n // count] for n in range(len(asked))]

    def _ask(self, server: Server, asked: Asked) -> list[list[Answer]]:
        model = {"model": self.adapter} if self.adapter else {}
        found = iter(server.generate([{**model, **one} for group in asked for one in group]))
        return [[next(found) for _ in group] for group in asked]

    def _each(self, work: Callable[[int, Server], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(work, range(len(self.servers)), self.servers))

    def _publish(self, version: str) -> None:
        """Send what is not there as it is now; with proof where servers had nothing."""
        if version == self.version:
            return
        began, publisher, fresh = time.perf_counter(), self.publisher, not self.publisher.sent
        names, marked = publisher.changes(self.dirty | self.changed.tensors.keys())
        what, known = publisher.publication(names), {**publisher.sent, **marked}
        name, old = f"{FOLDER}{version}-{self.count}", self.adapter
        base, own, size = what.write(self._folder(), name)
        self._forget()  # all is sent again where this does not end

        def load(_: int, server: Server) -> None:
            if base is not None:
                server.load_tensors(base, version)
            if own is not None:
                server.load_adapter(name, own, version, old)

        self._each(load)
        for folder in [base, own and old and own.with_name(old)]:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
        self.version, self.adapter, publisher.sent = version, name if own else old, known
        self.dirty, self.count = set(), self.count + 1
        self.seconds, self.bytes = self.seconds + time.perf_counter() - began, self.bytes + size
        if fresh:
            self.prove()

    def _folder(self) -> Path:
        if self.folder is None:
            place = self.place or (SHARED if os.access(SHARED, os.W_OK) else None)
            self.folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=place))
        return self.folder

    @contextmanager
    def _up(self) -> Iterator[None]:
        """Servers are there, and awake for as long as this lasts."""
        if self.start is not None and self.child is None:
            self.child, self.awake = self.start(), True
            self.servers = [self.child.server]
        if self.awake or not self.sleeps:
            yield
            return
        ...

    def _revive(self) -> None:
        """Start the own server again, which then has nothing; wait for others, which may have all."""
        if self.child is None:
            time.sleep(WAIT)
        else:
            self.child.restart()
            self._forget()


def _completions(
    answers: Sequence[Answer], texts: Texts, origin: Origin, most: int
) -> tuple[Completion, ...]:
    """Completions of one prompt, each up to the token that ends it."""
    found = []
    for answer in answers:
        tokens, logprobs = list[int](), answer.logprobs
        ended = ends_within(texts, tokens, answer.tokens)
        if not (ended or len(tokens) == most):
            raise ServerStopped(
                f"the server ended a completion after {len(tokens)} of {most} tokens, with none that ends"
                " one; are prompt and completion longer than its --max-model-len?"
            )
        if len(logprobs) != len(answer.tokens) or not all(map(math.isfinite, logprobs)):
            raise ServerStopped("the server gives a token no log-prob, or one that is not a number")
        (text,) = texts([tokens])
        given = tuple(tokens), logprobs[: len(tokens)], texts.cut(text), ended
        found.append(Completion(*given, origin=origin))
    return tuple(found)
