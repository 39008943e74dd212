"""Every setting of a run, each declared once, with its docstring.

A run writes them as TOML, which `modicum train --config config.toml` repeats: sections are tables
there (`[sampling]`), and plain options on the command line. Each setting says whether a resumed
run may change it (modicum.resuming). No torch here, so that `modicum train --help` is instant.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from modicum.resuming import digits, fixed, free, length
from modicum.spec import at_least, check, nearest
from modicum.types import UserError

C = TypeVar("C")


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn, in training and in evaluation alike."""

    temperature: float = fixed(1.0)
    """Divides the logits, for the sampler and for the log-probs that are trained."""
    top_p: float = fixed(1.0)
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    top_k: int = fixed(0)
    """Keep this many most probable tokens; 0 keeps all."""
    max_tokens: int = fixed(80)
    """Longest completion, in tokens."""
    max_prompt_tokens: int = free(512)
    """A longer prompt is refused."""
    template: Literal["auto", "chat", "r1_zero", "plain"] = fixed("auto")
    """Prompt form; auto is chat if the tokenizer has a chat template, else r1_zero."""
    style: Literal["tags", "boxed", "hashes", "none"] = fixed("tags")
    """How the prompt asks for the answer: <think>/<answer> tags, \\boxed{}, #### or not at all."""
    system: str | None = fixed(None)
    """System prompt, put before what the style asks for; unset takes the template's own."""

    def __post_init__(self) -> None:
        at_least(self, temperature=(0, 100), top_k=0, max_tokens=1, max_prompt_tokens=1)
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@dataclass(frozen=True)
class Steps:
    """What one step consists of."""

    prompts_per_step: int = fixed(16)
    """Problems drawn in a step."""
    group_size: int = fixed(8)
    """Completions of each problem."""
    updates_per_rollout: int = fixed(1)
    """Optimizer steps on the same completions."""
    micro_batch: int = digits(64)
    """Completions in one forward and backward pass; it changes memory, not the result."""
    rollout_batch: int = digits(512)
    """Completions sampled at the same time; it changes memory, not the result."""

    def __post_init__(self) -> None:
        at_least(self, prompts_per_step=1, updates_per_rollout=1, micro_batch=1, rollout_batch=1)
        if self.group_size < 2:
            raise UserError(
                f"group_size must be at least 2 (advantages compare), not {self.group_size}"
            )


@dataclass(frozen=True)
class Budget:
    """A limit besides `steps`: a run ends at the end of the step nearest to it."""

    budget: float = length(0.0)
    """What a run may spend in all; 0: only `steps` ends it."""
    budget_unit: Literal["tokens", "flops", "seconds"] = fixed("tokens")
    """Of what: generated tokens, matrix FLOPs, or seconds of sampling and training."""

    def __post_init__(self) -> None:
        at_least(self, budget=0.0)


@dataclass(frozen=True)
class Optimizer:
    """AdamW on what trains."""

    learning_rate: float | None = fixed(None)
    """Step size; None takes the update's default for the model (docs/updates.md)."""
    weight_decay: float = fixed(0.0)
    """Decoupled decay of what trains."""
    beta1: float = fixed(0.9)
    """Decay of the first moment."""
    beta2: float = fixed(0.999)
    """Decay of the second moment."""
    epsilon: float = fixed(1e-8)
    """Added to the root of the second moment."""
    max_grad_norm: float = fixed(1.0)
    """Gradients are scaled down to this norm; 0 does not clip."""
    schedule: Literal["constant", "linear"] = fixed("constant")
    """After warm-up: constant, or linear to zero at the last step, by rollouts and updates."""
    warmup_steps: int = fixed(0)
    """Updates of linear warm-up; those of rollouts without a signal count."""

    def __post_init__(self) -> None:
        at_least(self, weight_decay=(0, 100), max_grad_norm=0, warmup_steps=0, epsilon=(0, 1))
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise UserError(f"{name} must be at least 0 and below 1, not {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < 10:
            raise UserError(f"learning_rate must be above 0 and below 10, not {self.learning_rate}")


@dataclass(frozen=True)
class Compute:
    """Where and how precisely."""

    device: str = digits("auto")
    """cpu, cuda, cuda:0, ...; auto takes a GPU if there is one."""
    dtype: Literal["fp32", "bf16"] = fixed("fp32")
    """Precision of the forward and backward pass; what trains has fp32 masters."""
    rounding: Literal["stochastic", "nearest"] = fixed("stochastic")
    """How masters become bf16 weights: up or down by chance, right on average, or to nearest."""
    engine: Literal["auto", "split", "library"] = digits("auto")
    """How the model is run: in stretches of layers, or by the library's whole forward."""
    sampler: str = fixed("local")
    """What draws completions, as an expression: this process, token by token."""
    trunk_bytes: int = digits(2**30)
    """Most memory for states of frozen layers kept from sampling; past it they are run again."""
    checkpointing: bool = digits(False)
    """Recompute the activations of trained layers in backward: less memory, more time."""
    agreement_every: int = free(10)
    """Steps between checks by the library's forward, after the first five; 0 makes none."""

    def __post_init__(self) -> None:
        at_least(self, trunk_bytes=0, agreement_every=0)


@dataclass(frozen=True)
class Trust:
    """What the files of a model may do. Neither is needed for an ordinary model."""

    trust_remote_code: bool = free(False)
    """Run the Python code that comes with the model."""
    pickled_weights: bool = free(False)
    """Also read weights that are pickled (pytorch_model.bin) and not safetensors."""


@dataclass(frozen=True)
class Held:
    """Evaluation on held-out problems, before and after training."""

    eval_problems: int = fixed(256)
    """Held-out problems; 0 does not evaluate."""
    eval_samples: int = fixed(4)
    """Sampled completions of each, at the training temperature."""
    eval_every: int = free(0)
    """Also after every so many steps; 0 only at the ends."""
    eval_split: Literal["test", "tune"] = fixed("test")
    """Which held-out problems; what is chosen between runs is chosen on `tune`."""

    def __post_init__(self) -> None:
        at_least(self, eval_problems=0, eval_samples=1, eval_every=0)


@dataclass(frozen=True)
class Records:
    """What a run writes."""

    checkpoint_every: int = free(25)
    """Steps between checkpoints (the newest two are kept); 0 only at the end."""
    samples_every: int = free(10)
    """Steps between written sample completions."""
    anatomy: bool = free(True)
    """At the end, load the base once more and measure what changed in it (docs/anatomy.md)."""

    def __post_init__(self) -> None:
        at_least(self, checkpoint_every=0, samples_every=1)


@dataclass(frozen=True)
class Tracking:
    """Metrics to a tracker as well, beside the run's own files (docs/trackers.md)."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = free("none")
    """Also log to this library, offline and into the run folder; each needs its extra."""
    tracker_project: str = free("modicum")
    """The project (W&B, Trackio) or experiment (MLflow) that the run belongs to."""
    tracker_folder: str = free("")
    """Folder of Trackio's or MLflow's store, for runs that share one; empty: the run folder."""
    tracker_online: bool = free(False)
    """Let the tracker use the network, with its own login and environment variables."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run."""

    model: str = free("tiny")
    """`tiny`, a local folder (a model or a PEFT adapter), a GGUF file, or a hub id."""
    base: str = free("")
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    task: str = fixed("arithmetic")
    """Problems, as an expression; `modicum tasks` lists them."""
    reward: str = fixed("accuracy")
    """Weighted sum of terms, such as `accuracy + 0.2*format`."""
    update: str = fixed("full")
    """What trains, as an expression; `modicum updates` lists and previews."""
    objective: str = fixed("grpo")
    """The loss, such as `grpo(kl=0.04)`."""
    curriculum: str = fixed("uniform")
    """Which problems come next."""
    steps: int = length(70)
    """Rollouts at most; each is followed by `updates_per_rollout` optimizer steps."""
    seed: int = fixed(0)
    """Of problems, sampling noise and initialisation."""
    out: str = free("")
    """The run folder; empty makes one under runs/ from update and seed."""
    sampling: Sampling = field(default_factory=Sampling)
    batch: Steps = field(default_factory=Steps)
    budget: Budget = field(default_factory=Budget)
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    trust: Trust = field(default_factory=Trust)
    evaluation: Held = field(default_factory=Held)
    records: Records = field(default_factory=Records)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        at_least(self, steps=0, seed=0)
        if self.sampling.temperature == 0:
            raise UserError(
                "temperature 0 makes all completions of a group equal, so nothing can be learnt;"
                " training needs a temperature above 0"
            )


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """The config `cls` from nested tables; unknown keys and wrong types are UserErrors.

    `where` begins the messages (a file name).
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    hints = typing.get_type_hints(cls)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key} must be a table")
            made[key] = from_mapping(typing.cast(type, hints[key]), value, f"{where}: {key}")
        else:
            made[key] = check(f"{where}: {key}", value, hints[key])
    try:
        return cls(**made)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; a missing or broken file is a UserError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def to_toml(config: Any, above: str = "") -> str:
    """A config or nested tables as TOML; None in a config is left out (it is the default)."""
    plain = isinstance(config, Mapping)
    lines = tables = ""
    for name, value in (config if plain else vars(config)).items():
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            tables += f"\n[{above}{name}]\n{to_toml(value, f'{above}{name}.')}"
        elif plain or value is not None:
            lines += f"{name} = {toml_value(value)}\n"
    return lines + tables


def toml_value(value: Any) -> str:
    """A text, path, number, switch or list of them in TOML."""
    # The same in JSON, but for pairs of escapes (not needed) and DEL.
    return json.dumps(value, ensure_ascii=False, default=os.fspath).replace("\x7f", "\\u007f")
