"""Models as shapes: configs that need no hub, models without memory, and lengths of texts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from modicum import tasks, updates
from modicum.config import TrainConfig, Trust
from modicum.models.configs import attention_sizes, numbers
from modicum.models.four_bit import packed, plain, put
from modicum.models.load import TINY, locate, read_config, read_tokenizer, skeleton, structure
from modicum.plan.hardware import GIB, KNOWN
from modicum.tasks.examples import Sizes, draw, thought_of
from modicum.types import Frozen, Problem, UserError
from modicum.updates.base import Prepared, Update
from modicum.updates.targets import rest

PROMPT_TOKENS = 256  # assumed where no tokenizer is at hand
SHOWN_PROBLEMS = 64
TINY_TOKENS, TOKENS = 80, 512  # of a completion of the shipped base; where nothing says more
UNIT = 256  # that lengths are rounded up to
LOAD_SLACK = 2 * GIB


class Lengths(Frozen):
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
    """The Hugging Face config of a model, or known.toml's if it is not here; UserError without."""
    known: dict[str, dict[str, Any]] = KNOWN["models"]
    sizes = known.get(model) or known.get(model.removesuffix("-Instruct"))
    if sizes is None or locate(model, trust, base).local:
        return read_config(model, trust, base)
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[sizes["model_type"]]
    return made(dtype="bfloat16", **{k: v for k, v in sizes.items() if k != "model_type"})


def prepare(config: TrainConfig, model_config: Any, update: Update | None = None) -> Prepared:
    """The model of a run with its update applied, without memory."""
    made = skeleton(model_config, config.compute.dtype, config.trust)
    made = structure(made, config.model, config.trust, config.base)
    update = update or updates.parse(config.update)
    prepared = update.apply(made, config.seed)
    if how := config.compute.quantise:
        rest(prepared, update, how)
    return prepared


def rested(config: TrainConfig, update: Update) -> Callable[[nn.Module], str] | None:
    """What puts the layers of the run's model that rest under `update` in 4 bits; None: none do."""
    if not (how := config.compute.quantise):
        return None
    known = config_of(config.model, config.trust, config.base)
    names = {*map(plain, packed(prepare(config, known, update).model))}
    return partial(put, names=names, how=how)


def cache_numbers(model_config: Any) -> int:
    """Keys and values of a token, in all layers."""
    return sum(2 * heads * size for _, heads, size in attention_sizes(model_config))


def num_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """The bytes of tensors, those that are there twice counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def generous_bound(config: TrainConfig, model_config: Any, longest: int) -> float | None:
    """More bytes than any update of the model needs at such completions; None: unknown."""

    def most(*names: str) -> int:
        return max((number for name in names for number in numbers(model_config, name)), default=0)

    layers = getattr(model_config.get_text_config(), "num_hidden_layers", 0)
    hidden, vocabulary, heads = map(most, ("hidden_size", "vocab_size", "num_attention_heads"))
    if not (layers and hidden and vocabulary and heads):
        return None
    inner = most("intermediate_size") or 4 * hidden
    experts = most("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    wide = max(hidden, heads * most("head_dim"))
    held = layers * (4 * hidden * wide + 3 * hidden * inner * (1 + experts))
    weights = 2 * vocabulary * hidden + held
    batch = config.batch
    rows = min(batch.micro_batch, batch.prompts_per_step * batch.group_size)
    tokens = rows * (longest + PROMPT_TOKENS / batch.group_size + 1)
    scores = rows * heads * longest * (longest + PROMPT_TOKENS)
    activations = 4 * layers * (tokens * (40 * wide + 10 * inner) + scores)
    together = batch.rollout_batch if config.evaluation.eval_problems else batch.group_size
    together = max(together, min(batch.rollout_batch, batch.prompts_per_step * batch.group_size))
    cache = 6 * cache_numbers(model_config) * (longest + PROMPT_TOKENS)
    sampling = together * (24 * vocabulary + cache)
    # Weights, masters, two copies of gradients, moments, reference, and sums of a schedule.
    return 48.0 * weights + activations + sampling + LOAD_SLACK


def problems_of(config: TrainConfig, task: tasks.Task | None = None) -> tuple[Any, list[Problem]]:
    """The task and some problems of it; UserError where they are not to be had."""
    made = task or tasks.parse(config.task)
    size = made.size("train")
    count = SHOWN_PROBLEMS if size is None else min(size, SHOWN_PROBLEMS)
    return made, [made.problem("train", config.seed, index) for index in range(count)]


def tokenizer_of(config: TrainConfig, hub: bool = False) -> Any:
    """The tokenizer of a model that is here, or with `hub` of any; None where there is none."""
    if hub or locate(config.model, config.trust, config.base).local:
        with suppress(UserError):
            return read_tokenizer(config.model, config.trust, config.base)
    return None


def prompt_tokens(config: TrainConfig, task: tasks.Task | None = None) -> tuple[int, int] | None:
    """The shortest and longest prompt of some problems of the task; None without a tokenizer."""
    tokenizer = tokenizer_of(config)
    if tokenizer is None:
        return None
    task, found = problems_of(config, task)
    lengths = Sizes(tokenizer, config.sampling, draw(task, config.sampling))
    # A longer one is not sampled after.
    sizes = [min(lengths.of(problem), config.sampling.max_prompt_tokens) for problem in found]
    return min(sizes), max(sizes)


def lengths_of(
    config: TrainConfig, prompt: int | None = None, task: tasks.Task | None = None
) -> Lengths:
    """The task's prompts (or `prompt` tokens) and completions of `max_tokens`, the worst case."""
    ends = (prompt, prompt) if prompt else prompt_tokens(config, task)
    known = ends if ends and all(ends) else (PROMPT_TOKENS - 1, PROMPT_TOKENS)
    return Lengths(*known, config.sampling.max_tokens, config.sampling.max_tokens)


def completion_tokens(config: TrainConfig, task: tasks.Task | None, hub: bool) -> tuple[int, str]:
    """The longest completion, by problems and positions (with `hub` fetched), and why that long."""
    if locate(config.model, config.trust, config.base).place == str(TINY):
        return TINY_TOKENS, "the shipped base writes less than 80 tokens"
    task, tokenizer = task or tasks.parse(config.task), tokenizer_of(config, hub)
    tokens, why = getattr(task, "completion_tokens", TOKENS), f"{task} takes that many"
    if tokens == TOKENS and tokenizer is not None:
        texts = [thought_of(task, problem) for problem in problems_of(config, task)[1]]
        if any(texts):
            lengths = sorted(len(tokenizer(text)["input_ids"]) for text in filter(None, texts))
            long = lengths[int(0.95 * (len(lengths) - 1))]
            tokens = -(-2 * long // UNIT) * UNIT
            why = f"19 of 20 worked solutions have at most {long} tokens, and models write more"
    text_config = config_of(config.model, config.trust, config.base).get_text_config()
    positions = getattr(text_config, "max_position_embeddings", 0) or 10**9
    most = max(positions - config.sampling.max_prompt_tokens, positions // 2)
    if tokens > most:
        return most, f"the model has {positions} positions for prompt and completion"
    return tokens, why
