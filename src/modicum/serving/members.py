"""The settings that begin a sampler of servers; `parse` knows them, and those of the engine."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch.distributed as dist

from modicum.config import Compute
from modicum.engine.base import Engine, Sampler
from modicum.engine.samplers import SAMPLERS, SamplerSettings, parse
from modicum.limits import Limits, Positive
from modicum.models.load import Loaded, inner
from modicum.serving.child import ServerProcess, require_vllm
from modicum.serving.client import Server, ServerGone
from modicum.serving.publish import Publisher
from modicum.serving.sampler import ServedSampler
from modicum.types import UserError
from modicum.updates.base import Prepared

__all__ = ["Served", "Vllm", "parse"]

CPU_MEMORY = 0.25  # share of a host's memory, at most, which others use as well


def served(loaded: Loaded, prepared: Prepared | None, rows: int, **how: Any) -> ServedSampler:
    """A sampler of a policy by servers."""
    model = loaded.model if prepared is None else prepared.model
    return ServedSampler(loaded, Publisher(model, prepared), rows, **how)


class Vllm(SamplerSettings):
    """A vLLM server of its own, begun by the Python of an environment that has vLLM."""

    python: str = ""
    """The interpreter; without, that of the environment variable MODICUM_VLLM_PYTHON."""
    memory: Annotated[float, Limits(0, 1, above=True)] = 0.5  # the server's share of a GPU's
    sleep: bool = True  # whether it gives its memory back while the policy trains, on a GPU
    tensor_parallel: Positive = 1
    dtype: str = ""  # of the server's weights; empty: the run's

    def require(self) -> None:
        """UserError without an interpreter that has vLLM."""
        require_vllm(self.python)

    def share(self, on_gpu: bool) -> float:
        """Of the memory, which the server may take."""
        return self.memory if on_gpu else min(self.memory, CPU_MEMORY)

    def held(self, memory: int, device: str) -> tuple[int, int]:
        on_gpu = device == "cuda"
        taken = round(memory * self.share(on_gpu))
        return taken, 0 if self.sleep and on_gpu else taken

    def begin(
        self, engine: Engine, loaded: Loaded, prepared: Prepared | None, compute: Compute, rows: int
    ) -> Sampler:
        base = inner(loaded.model)
        try:
            said, _ = base.config.get_config_dict(base.name_or_path, local_files_only=True)
        except OSError:
            said = {"text_config": None}  # a GGUF file
        if "text_config" in said:
            raise UserError(
                f"sampler vllm: what vLLM makes of {base.name_or_path} has tensors of other names; modicum"
                " export --format merged makes a model folder of it that both read alike"
            )
        on_gpu = loaded.device.type == "cuda"
        made = served(loaded, prepared, rows, sleeps=self.sleep and on_gpu)
        made.start = lambda: ServerProcess(
            base.name_or_path,
            self.python,
            self.share(on_gpu),
            made.sleeps,
            self.tensor_parallel,
            self.dtype or str(base.dtype).removeprefix("torch."),
            lora_rank=made.publisher.rank,
            gpu=loaded.device.index,
        )
        return made


class Served(SamplerSettings):
    """vLLM servers that are there: `server('http://localhost:8000')`; several share the prompts."""

    name: ClassVar[str] = "server"
    varargs: ClassVar[str | None] = "urls"
    urls: tuple[str, ...] = ()
    folder: str = ""
    """Where weights are handed over, which both sides see; empty: in the machine's memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.urls or len({Server(url).url for url in self.urls}) < len(self.urls):
            why = "it takes addresses, each once: server('http://localhost:8000')"
            raise UserError(f"sampler server: {why}")

    def __str__(self) -> str:
        folder = [f"folder={self.folder!r}"] if self.folder else []
        return f"server({', '.join([*map(repr, self.urls), *folder])})"

    def require(self) -> None:
        """UserError where one does not answer, or not as vLLM does."""
        for url in self.urls:
            try:
                Server(url).about()
            except ServerGone as error:
                raise UserError(f"{error}; is the server there?") from None

    def begin(
        self, engine: Engine, loaded: Loaded, prepared: Prepared | None, compute: Compute, rows: int
    ) -> Sampler:
        """Every process of a run has servers of its own, as it sends them weights."""
        several = dist.is_available() and dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        if len(self.urls) % size:
            raise UserError(
                f"sampler server: {len(self.urls)} addresses for {size} processes; each needs servers"
                " of its own, and all as many"
            )
        place = Path(self.folder).expanduser() if self.folder else None
        urls = self.urls[rank::size]
        return served(loaded, prepared, rows, servers=[*map(Server, urls)], place=place)


SAMPLERS |= {cls.name: cls for cls in (Vllm, Served)}
