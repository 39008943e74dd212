"""Models as shapes: configs that need no hub, models without memory, and lengths of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum import tasks, updates
from modicum.config import TrainConfig, Trust
from modicum.models.configs import attention_sizes
from modicum.models.load import locate, read_config, skeleton, structure
from modicum.plan.hardware import KNOWN
from modicum.updates.base import Prepared

PROMPT_TOKENS = 256  # assumed where no tokenizer is at hand
SHOWN_PROBLEMS = 32


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts (shortest and longest) and of completions (mean and longest)."""

    shortest_prompt: int
    prompt: int
    completion: int
    longest: int

    def prompts(self, count: int) -> list[tuple[int, ...]]:
        """So many prompts, all but one of the longest; the tokens mean nothing."""
        return [(0,) * (self.shortest_prompt if p == 1 else self.prompt) for p in range(count)]

    def completions(self, count: int) -> list[tuple[int, ...]]:
        """So many completions: one is the longest, and the others give the mean."""
        if count < 2:
            return [(0,) * self.longest] * count
        rest = max(0, self.completion * count - self.longest)
        each, more = divmod(rest, count - 1)
        sizes = [self.longest, *(each + (b < more) for b in range(count - 1))]
        return [(0,) * max(1, size) for size in sizes]


def config_of(model: str, trust: Trust | None = None, base: str = "") -> Any:
    """The Hugging Face config of a model; of a Qwen2.5 size on the hub, the built-in one.

    UserError when there is none.
    """
    family, _, size = model.removeprefix("Qwen/").partition("-")
    size, sizes = size.removesuffix("-Instruct"), KNOWN["qwen2_5"]
    if locate(model, trust, base).local or family != "Qwen2.5" or size not in sizes:
        return read_config(model, trust, base)
    from transformers import Qwen2Config

    more = {"dtype": "bfloat16", "architectures": ["Qwen2ForCausalLM"]}
    return Qwen2Config(**sizes[size], max_position_embeddings=32_768, **more)


def prepare(config: TrainConfig, model_config: Any) -> Prepared:
    """The model of a run with its update applied, without memory."""
    made = skeleton(model_config, config.compute.dtype, config.trust)
    made = structure(made, config.model, config.trust, config.base)
    return updates.parse(config.update).apply(made, config.seed)


def cache_numbers(model_config: Any) -> int:
    """Keys and values of a token, in all layers."""
    return sum(2 * heads * size for _, heads, size in attention_sizes(model_config))


def num_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """The bytes of tensors, those that are there twice counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def prompt_tokens(config: TrainConfig) -> tuple[int, int] | None:
    """The shortest and longest prompt of some problems of the task; None without a tokenizer."""
    from transformers import AutoTokenizer

    from modicum.tasks.examples import draw
    from modicum.tasks.lengths import Sizes

    source = locate(config.model, config.trust, config.base)
    if not source.local:
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source.texts, **source.arguments)
    except (OSError, ValueError):
        return None
    task = tasks.parse(config.task)
    size = task.size("train")
    count = SHOWN_PROBLEMS if size is None else min(size, SHOWN_PROBLEMS)
    found = [task.problem("train", config.seed, index) for index in range(count)]
    lengths = Sizes(tokenizer, config.sampling, draw(task, config.sampling))
    most = config.sampling.max_prompt_tokens
    # A longer one is not sampled after.
    sizes = [min(lengths.of(problem), most) for problem in found]
    return min(sizes), max(sizes)
