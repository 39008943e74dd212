"""Models as shapes: configs that need no hub, models without memory, and lengths of texts.

The Qwen2.5 numbers are those of the published config.json files
(https://huggingface.co/Qwen, Apache-2.0; 3B under its own licence), so that these sizes can be
planned where no hub is in reach, and at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modicum import tasks, updates
from modicum.config import TrainConfig, Trust
from modicum.models.configs import attention_sizes
from modicum.models.load import locate, read_config, skeleton, structure
from modicum.updates.base import Prepared

# hidden size, intermediate size, layers, heads, key/value heads, vocabulary, tied embeddings
QWEN25 = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
}
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
    size = size.removesuffix("-Instruct")
    if locate(model, trust, base).local or family != "Qwen2.5" or size not in QWEN25:
        return read_config(model, trust, base)
    from transformers import Qwen2Config

    hidden, inner, layers, heads, shared, vocabulary, tied = QWEN25[size]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
        dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
    )


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

    from modicum.tasks.prompts import encode

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
    sizes = [len(encode(problem, tokenizer, config.sampling)) for problem in found]
    return min(sizes), max(sizes)
