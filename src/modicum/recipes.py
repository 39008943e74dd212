"""Named functions that return a whole TrainConfig, and the learning rates they rest on.

`modicum train --recipe NAME` runs one, and options override its settings. Each says in its
docstring what it repeats, where it departs, what it needs and what the source reports; the
numbers of a source are its own and were not measured here (docs/recipes.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modicum.config import Compute, Held, Optimizer, Sampling, Steps, TrainConfig
from modicum.spec import nearest
from modicum.types import UserError

TINY_RATE = 2e-4
LARGE_RATE = 1e-6


def default_learning_rate(model: str, update: Any) -> float:
    """The rate for `update` when the user gave none.

    2e-4 for the tiny base (docs/tiny.md), else 1e-6, which RL
    on pretrained models commonly uses; times ten for LoRA ("LoRA Without Regret").
    """
    return (TINY_RATE if model == "tiny" else LARGE_RATE) * update.rate_scale


# The best of three rates for each, on the tune split (docs/tiny.md, scripts/tune_rates.py).
DEMO_RATES = {"full": 2e-4, "last(1)": 8e-4, "lora(rank=8)": 1e-3}


def demo(update: str, seed: int = 0) -> TrainConfig:
    """The run of `modicum demo` for one update: tiny base, arithmetic, two cores.

    Updates that were not tuned take the default rate.
    """
    config = replace(TrainConfig(), update=update, seed=seed)
    rate = DEMO_RATES.get(update)
    return replace(config, optimizer=replace(config.optimizer, learning_rate=rate))


ADDER = """You are a calculator. Example: for 2+3 you write
2+3 = 5
#### 5"""


def addition() -> TrainConfig:
    """SmolLM2-135M-Instruct learns to add numbers below 20, on two CPU cores (docs/smollm2.md).

    The example in the system prompt makes the base mark a quarter of its answers, so that
    the strict reward finds something to reward from the first steps; `lenient` and `format`
    carry it there. Make the model folder with scripts/fetch_smollm2.py.
    """
    return TrainConfig(
        model="models/SmolLM2-135M-Instruct",
        task="addition(below=20)",
        reward="accuracy + 0.3*format(style='hashes') + 0.3*accuracy(lenient=True)",
        update="last(6)",
        steps=80,
        sampling=Sampling(max_tokens=32, style="hashes", system=ADDER),
        batch=Steps(prompts_per_step=6, group_size=8),
        optimizer=Optimizer(learning_rate=4e-5),
        evaluation=Held(eval_problems=64, eval_samples=4),
    )


def gsm8k() -> TrainConfig:
    """The single-file GSM8K replication (willccb's gist and its descendants), mended.

    Repeats: Qwen2.5-1.5B-Instruct, 8 completions, 4 prompts an optimizer step, KL 0.04,
    rate 5e-6, betas (0.9, 0.99), decay 0.1, clip 0.1, temperature 0.9, 786 tokens, and the
    weights 2 for correctness and 1.5 for the three format terms together.
    Departs, since they are faults: the chat has its generation prompt; the loss is divided
    by the whole batch; the schedule counts optimizer steps; evaluation is on the official
    test set; format must hold over lines; answers are compared by value; the 0.5 for any
    whole number is left out, because it pays for wrong answers. Tags are think, not reasoning.
    Needs: about 28 GB for weights, masters, gradients and moments, one GPU of 40 GB or more.
    Reports: the descendants no table; verl reaches 77.9 with LoRA on this model.
    """
    return TrainConfig(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        task="gsm8k",
        reward="2*accuracy + 1.5*format",
        objective="grpo(kl=0.04)",
        steps=250,
        sampling=Sampling(temperature=0.9, max_tokens=786, style="tags"),
        batch=Steps(prompts_per_step=4, group_size=8, micro_batch=8),
        optimizer=Optimizer(
            learning_rate=5e-6,
            weight_decay=0.1,
            beta2=0.99,
            max_grad_norm=0.1,
            schedule="linear",
            warmup_steps=45,
        ),
        compute=Compute(dtype="bf16"),
        evaluation=Held(eval_problems=1319, eval_samples=1),
    )


def tinyzero() -> TrainConfig:
    """TinyZero's countdown (github.com/Jiayi-Pan/TinyZero) with GRPO in place of PPO.

    Repeats: a 3B base, three to four numbers (here four), 1024 tokens, rate 1e-6, KL 0.001,
    64 completions an optimizer step, answers between tags.
    Departs: GRPO with groups of 8 (no critic); each number used once in exact fractions; the
    0.1 that TinyZero pays for any answer tag is the `format` term, and needs thinking tags.
    Needs: about 56 GB for weights, masters, gradients and moments: an 80 GB GPU, or
    `--update 'lora(rank=32)'` on 24 GB.
    Reports: a 0.5B base fails, a 3B base learns to search and to check itself.
    """
    return TrainConfig(
        model="Qwen/Qwen2.5-3B",
        task="countdown(numbers=4)",
        reward="accuracy + 0.1*format",
        objective="grpo(kl=0.001)",
        steps=400,
        sampling=Sampling(max_tokens=1024, template="r1_zero"),
        batch=Steps(prompts_per_step=8, group_size=8, micro_batch=8),
        optimizer=Optimizer(learning_rate=1e-6),
        compute=Compute(dtype="bf16"),
    )


def r1_zero() -> TrainConfig:
    """DeepSeek-R1-Zero (arXiv 2501.12948) at a size that one GPU holds.

    Repeats: a base model, its template, accuracy and format at equal weight, groups of 16,
    32 questions a step, temperature 1, KL 0.001, no supervised start.
    Departs: Qwen2.5-Math-1.5B on MATH instead of 671B; 3000 tokens instead of 32,768; one
    update a rollout instead of 16 minibatches; clip 0.2 instead of 10 (without effect there).
    Needs: about 28 GB and the activations of 3000 tokens: one 80 GB GPU; `last(7)` a 24 GB.
    Reports: Oat-Zero on this base (arXiv 2503.20783): MATH-500 51.7 to 73.5, AIME 2024 11.3
    to 16.0.
    """
    return TrainConfig(
        model="Qwen/Qwen2.5-Math-1.5B",
        task="math",
        reward="accuracy + format",
        objective="grpo(kl=0.001)",
        steps=400,
        sampling=Sampling(max_tokens=3000, template="r1_zero"),
        batch=Steps(prompts_per_step=32, group_size=16, micro_batch=8, rollout_batch=256),
        optimizer=Optimizer(learning_rate=1e-6),
        compute=Compute(dtype="bf16", checkpointing=True),
    )


def tina() -> TrainConfig:
    """Tina (arXiv 2504.15777): LoRA on a distilled reasoner.

    Repeats: DeepSeek-R1-Distill-Qwen-1.5B, rank 32, alpha 128 on all linear layers, rate
    1e-6, groups of 6, temperature 0.7.
    Departs: no adapter dropout (old and new log-probs would differ); linear decay instead
    of cosine to a tenth; problems of OpenThoughts-114k; accuracy and format only.
    Needs: about 5 GB and the activations of 3584 tokens: one 24 GB GPU.
    Reports: AIME 2024 43.3 for 9 dollars.
    """
    return TrainConfig(
        model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        task="openthoughts",
        reward="accuracy + 0.5*format(style='boxed')",
        update="lora(rank=32, alpha=128)",
        steps=500,
        sampling=Sampling(temperature=0.7, max_tokens=3584, style="boxed"),
        batch=Steps(prompts_per_step=8, group_size=6, micro_batch=6, rollout_batch=48),
        optimizer=Optimizer(learning_rate=1e-6, schedule="linear"),
        compute=Compute(dtype="bf16", checkpointing=True),
    )


def lora_rank1() -> TrainConfig:
    """The strongest claim of "LoRA Without Regret" (Schulman et al. 2025): rank 1 is enough.

    Repeats: rank 1, alpha 32, all linear layers, ten times the rate of full training, small
    batches; the model and rates of TRL's check of it (SmolLM3-3B, 1e-5 against 1e-6).
    Departs: TRL's check is on one seed. Run `--update full --learning-rate 1e-6` beside it, both
    over several seeds.
    Needs: about 7 GB and activations: one 16 GB GPU; full needs about 56 GB.
    Reports: the reward in training matches full training's.
    """
    return TrainConfig(
        model="HuggingFaceTB/SmolLM3-3B",
        task="gsm8k",
        reward="accuracy + 0.2*format(style='boxed')",
        update="lora(rank=1)",
        steps=200,
        sampling=Sampling(max_tokens=1024, style="boxed"),
        batch=Steps(prompts_per_step=4, group_size=8, micro_batch=8),
        optimizer=Optimizer(learning_rate=1e-5),
        compute=Compute(dtype="bf16"),
        evaluation=Held(eval_problems=1319, eval_samples=1),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "addition": addition,
    "gsm8k": gsm8k,
    "tinyzero": tinyzero,
    "r1_zero": r1_zero,
    "tina": tina,
    "lora_rank1": lora_rank1,
}


def named(name: str) -> TrainConfig:
    """The recipe called `name`; an unknown one is a UserError."""
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]()
