"""Samplers that ask vLLM servers: `vllm` starts one of its own, `server` uses those that are there.

Weights are sent when the next completions are asked for (`publish`) and proved to be there (`proof`). What is
drawn depends on keys alone: the seed of a request is 31 bits of the SHA-256 of key and member, so that a server
that was started again gives with the same weights what the old one would have given, but for rounding."""

import hashlib
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from modicum.config import Sampling
from modicum.engine.base import Asked, Changed, Groups, Sampler
from modicum.engine.samplers import Drawn, ends_within
from modicum.engine.text import Texts
from modicum.models.load import Loaded
from modicum.serving.child import ServerProcess
from modicum.serving.client import Answer, Server, ServerGone
from modicum.serving.proof import ServerStopped, compare, require_versions
from modicum.serving.publish import Publisher
from modicum.types import Completion, Origin, UserError

T = TypeVar("T")
Requests = Sequence[Mapping[str, Any]]
TRIES, WAIT = 3, 30.0
"""How often completions are asked for where a server goes, and seconds until another's is asked again."""
SHARED = Path("/dev/shm")  # memory, as a folder
NAME = "modicum-"  # begins that of a folder, and of an adapter


def seed_of(key: Sequence[object], member: int) -> int:
    """31 bits that depend on every part of a key, and on the member."""
    whole = "\x1f".join(map(str, (*key, member)))
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:4], "big") >> 1


@dataclass(eq=False)
class ServedSampler(Sampler):
    """Draws with servers, which share the requests; `rows` completions are on their way at a time."""

    loaded: Loaded
    publisher: Publisher
    rows: int
    servers: Sequence[Server] = ()
    start: Callable[[], ServerProcess] | None = None  # of its own server, for the first prompt
    sleeps: bool = False  # whether servers sleep while others need their memory
    place: Path | None = None  # where what is sent lies; None: in the machine's memory

    def __post_init__(self) -> None:
        self.changed, self.dirty = Changed({}, -1), set[str]()
        self.child: ServerProcess | None = None
        self.folder: Path | None = None
        self.count = 0  # of what was sent so far
        self.asleep = False
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
        self._with_policy(self._compare)

    def _compare(self) -> None:
        ours = self.publisher.tensors(self.publisher.modules)
        for server in self.servers:
            dtype = getattr(torch, server.about()["dtype"])
            there = {name: t.to(dtype) if t.is_floating_point() else t for name, t in ours.items()}
            self.proven = compare(server.checksums(), there, server.url)

    def sample(self, asked: Asked) -> Groups:
        """A request for every completion; where one ends is for `Texts` to say, and not for servers."""
        prompts, group_size, sampling = asked.prompts, asked.group_size, asked.sampling
        if sampling.top_p < 1 or sampling.top_k:
            raise UserError("a server cuts top-k and top-p in a way of its own: leave them out")
        texts = Texts(self.loaded.tokenizer, self.loaded.end_tokens, sampling.stop or ())
        given = {"n": 1, "logprobs": 0, "max_tokens": sampling.max_tokens}
        given |= {"temperature": sampling.temperature, "stop_token_ids": [*texts.ends]}
        groups: Groups = []
        part = max(1, self.rows // group_size)
        for start in range(0, len(prompts), part):
            rows = [
                {
                    "token_ids": [*prompts[n]],
                    "sampling_params": {**given, "seed": seed_of(asked.keys[n], member)},
                }
                for n in range(start, min(start + part, len(prompts)))
                for member in range(group_size)
            ]
            found = iter(self._complete(rows, texts, sampling))
            groups += [tuple(group) for group in zip(*[found] * group_size, strict=True)]
            asked.progress(len(groups))
        return groups

    def _complete(self, rows: Requests, texts: Texts, sampling: Sampling) -> list[Completion]:
        """Where a server has seen a stop string that is none, it is asked again without."""
        asked = rows
        if texts.stops:
            more = {"stop": [*texts.stops], "include_stop_str_in_output": True}
            asked = [{**row, "sampling_params": row["sampling_params"] | more} for row in rows]
        origin = Origin(self.changed.version, sampling.temperature, 1.0, 0)
        drawn = [_cut(texts, answer) for answer in self._draw(asked, origin.weights)]
        most = sampling.max_tokens
        early = [n for n, (tokens, _) in enumerate(drawn) if not _whole(texts, tokens, most)]
        if texts.stops and early:
            again = self._draw([rows[n] for n in early], origin.weights)
            for n, answer in zip(early, again, strict=True):
                drawn[n] = _cut(texts, answer)
        if odd := [tokens for tokens, _ in drawn if not _whole(texts, tokens, most)]:
            raise ServerStopped(
                f"a completion ended after {len(odd[0])} of {most} tokens with none that ends one; are"
                " prompts and completions longer than the server's --max-model-len?"
            )
        whole = texts([tokens for tokens, _ in drawn])
        return [
            Completion(*row, texts.cut(text), texts.ended(row[0]), origin=origin)
            for row, text in zip(drawn, whole, strict=True)
        ]

    def _draw(self, rows: Requests, version: str) -> list[Answer]:
        """Answers that were drawn from this version."""

        def ask(place: int, server: Server) -> list[Answer]:
            mine = rows[place * share :][:share]
            model = {"model": self.adapter} if self.adapter else {}
            found = server.generate([{**model, **row} for row in mine])
            require_versions([answer.versions for answer in found], version, server.url)
            return found

        share = -(-len(rows) // max(1, len(self.servers)))
        parts: list[list[Answer]] = self._with_policy(lambda: self._each(ask))
        return [answer for part in parts for answer in part]

    def _each(self, work: Callable[[int, Server], T]) -> list[T]:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(work, range(len(self.servers)), self.servers))

    def _with_policy(self, work: Callable[[], T]) -> T:
        """What `work` gives with servers that have the policy as it is; again where one goes."""
        for left in reversed(range(TRIES)):
            try:
                with self._up():
                    self._publish(self.changed.version)
                    return work()
            except ServerGone as error:
                if not left:
                    raise ServerStopped(f"{error}; once it is there, --resume goes on") from None
                self._revive()
        raise AssertionError

    @contextmanager
    def _up(self) -> Iterator[None]:
        """Servers are there, and awake for as long as this lasts."""
        if self.start is not None and self.child is None:
            self.child = self.start()
        if self.child is not None:  # whose address is another each time it starts
            self.servers = [self.child.server]
        if self.asleep:
            self._each(lambda _, server: server.wake())
            self.asleep = False
        yield
        if self.sleeps:
            self._each(lambda _, server: server.sleep())
            self.asleep = True

    def _revive(self) -> None:
        """Start the own server again, which then has nothing; wait for another, which may have all."""
        if self.child is None:
            time.sleep(WAIT)
        else:
            self.child.restart()
            self.asleep = False
            self._forget()

    def _publish(self, version: str) -> None:
        """Send what is not there as it is now; with proof to servers that had nothing."""
        if version == self.version:
            return
        began, publisher, fresh = time.perf_counter(), self.publisher, not self.version
        names, marked = publisher.changes(self.dirty | self.changed.tensors.keys())
        what, known, old = publisher.publication(names), publisher.sent | marked, self.adapter
        if self.folder is None:
            shared = SHARED if os.access(SHARED, os.W_OK) else None
            self.folder = Path(tempfile.mkdtemp(prefix=NAME, dir=self.place or shared))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        new = f"{self.folder.name}-{version}-{self.count}"  # that no server has had
        base, own, size = what.write(self.folder / new)
        self.count += 1
        self._forget()  # all is sent again unless this comes to its end

        def load(_: int, server: Server) -> None:
            if base is not None:
                server.load_tensors(base, version)
            if own is not None:
                server.load_adapter(new, own, version, old)

        self._each(load)
        if base is not None:
            shutil.rmtree(base)
        if own is not None and old:  # the present one may be read again
            shutil.rmtree(self.folder / old)
        self.version, self.adapter, publisher.sent = version, new if own else old, known
        self.dirty = set()
        self.seconds, self.bytes = self.seconds + time.perf_counter() - began, self.bytes + size
        if fresh:
            self._compare()


def _cut(texts: Texts, answer: Answer) -> Drawn:
    """What a server has drawn, up to the first token that ends it."""
    tokens = list[int]()
    ends_within(texts, tokens, answer.tokens)
    logprobs = answer.logprobs[: len(tokens)]
    if len(logprobs) != len(tokens) or not all(map(math.isfinite, logprobs)):
        raise ServerStopped("the server gives a token no log-prob, or one that is not a number")
    return tuple(tokens), logprobs


def _whole(texts: Texts, tokens: Sequence[int], most: int) -> bool:
    return len(tokens) == most or (len(tokens) > 0 and texts.ended(tokens))
