"""Every setting of a run, each declared once, with its docstring.

A run writes them as TOML, which `modicum train --config config.toml` repeats: sections are tables
there (`[sampling]`), and plain options on the command line. Each setting says whether a resumed
run may change it (modicum.settings), and the type of a number its limits. No torch here."""

import os
from dataclasses import field
from typing import Annotated, Literal

from modicum import draws, stopping
from modicum.limits import Limits, Natural, Positive, Share, ShareBelowOne
from modicum.settings import Settings, chosen, digits, fixed, free, length, member
from modicum.settings import from_mapping as from_mapping
from modicum.settings import read_toml as read_toml
from modicum.settings import to_toml as to_toml
from modicum.settings import toml_value as toml_value
from modicum.spec import keywords, short
from modicum.types import UserError

PROBE_EVERY = 10  # steps, under a curriculum
KINDS = ("task", "reward", "update", "objective", "curriculum")  # settings that are expressions


class Sampling(Settings):
    """How completions are drawn, in training and in evaluation alike."""

    temperature: Annotated[float, Limits(0, 100)] = fixed(1.0)
    """Divides the logits, for the sampler and for the log-probs that are trained."""
    top_p: Annotated[float, Limits(0, 1, above=True)] = fixed(1.0)
    """Keep the smallest set of tokens with this much probability; 1 keeps all."""
    top_k: Natural = fixed(0)
    """Keep this many most probable tokens; 0 keeps all."""
    max_tokens: Natural = chosen(fixed(0))
    """Longest completion, in tokens; auto follows the task and its worked solutions."""
    max_prompt_tokens: Positive = free(512)
    """Longest prompt, in tokens. A resumed run keeps it where longer ones are skipped."""
    template: Literal["auto", "chat", "r1_zero", "plain"] = fixed("auto")
    """Prompt form; auto is chat if the tokenizer has a chat template, else r1_zero."""
    style: Literal["tags", "boxed", "hashes", "none"] = fixed("tags")
    """How the prompt asks for the answer: <think>/<answer> tags, \\boxed{}, #### or not at all."""
    system: str | None = fixed(None)
    """System prompt, put before what the style asks for; unset takes the template's own."""
    template_args: tuple[str, ...] | str = fixed("")
    """What the chat template is told, such as `enable_thinking=false`; again for more."""
    examples: Natural = fixed(0)
    """Worked problems of the train split that stand before every question, and are not trained."""
    examples_seed: Natural = fixed(0)
    """Of the choice of these problems; runs of other seeds have the same ones."""
    stop: str | tuple[str, ...] | None = fixed(None)
    """Text that ends a completion (again for another; '' for none); unset asks the template."""
    long_prompts: Literal["refuse", "skip"] = fixed("refuse")
    """What a longer prompt in a data set does: refuse the run before it begins, or skip the problem."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.template_args, str):
            object.__setattr__(self, "template_args", ", ".join(self.template_args))
        keywords("template_args", str(self.template_args))
        if self.stop is not None:
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            object.__setattr__(self, "stop", () if stop == ("",) else stop)
            if "" in stop and len(stop) > 1:
                raise UserError("stop: an empty text beside others; alone it means no stop strings")


class Steps(Settings):
    """What one step consists of."""

    prompts_per_step: Positive = fixed(16)
    """Problems drawn in a step."""
    group_size: Positive = fixed(8)
    """Completions of each problem; one is enough where the objective compares none."""
    updates_per_rollout: Positive = fixed(1)
    """Optimizer steps on the same completions."""
    micro_batch: Natural = chosen(digits(0))
    """Completions in one forward and backward pass: memory, not the result; auto: what fits."""
    rollout_batch: Natural = chosen(digits(0))
    """Completions sampled at the same time: memory, not the result; auto: what fits."""
    groups: str = fixed("all")
    """Which groups are trained: all, filter (those with a signal) or refill, which draws more."""
    denominators: Literal["auto", "sampled", "kept"] = fixed("auto")
    """Whether the loss is divided by all groups or by those trained; auto: kept for refill."""
    correction: str = fixed("auto")
    """What weighs tokens of a sampler elsewhere: none, token, sequence, mask, geometric; auto: token."""
    cut: Literal["score", "zero", "mask"] = fixed("score")
    """What completions cut at max_tokens get: their score, reward 0, or no part in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice = draws.parse(self.groups)
        object.__setattr__(self, "groups", str(choice))
        if choice.selects and self.group_size < 2:
            raise UserError(f"groups = {choice} needs a group_size of at least 2, for a signal")

    @property
    def divides(self) -> str:
        """What the loss is divided by: sampled or kept."""
        auto = self.denominators == "auto"
        return draws.parse(self.groups).divides if auto else self.denominators


class Budget(Settings):
    """A limit besides `steps`: a run ends at the end of the step nearest to it."""

    budget: Annotated[float, Limits(0)] = length(0.0)
    """What a run may spend in all; 0: only `steps` ends it."""
    budget_unit: Literal["tokens", "flops", "seconds"] = fixed("tokens")
    """Of what: generated tokens, matrix FLOPs, or seconds of sampling and training."""
    stop_when: str = length(stopping.NEVER)
    """Ends the run when this holds, such as `accuracy >= 0.9` or `reward/mean > 0.8`."""
    patience: Natural = length(0)
    """Ends it after so many evaluations on the tune split without a better one; 0 never does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stopping.parse(self.stop_when)


class Optimizer(Settings):
    """AdamW on what trains."""

    learning_rate: Annotated[float | None, Limits(0, 10, True, True)] = chosen(fixed(None))
    """Step size; auto finds it from the run's own first rollout (docs/rates.md)."""
    weight_decay: Annotated[float, Limits(0, 100)] = fixed(0.0)
    """Decoupled decay of what trains."""
    beta1: ShareBelowOne = fixed(0.9)
    """Decay of the first moment."""
    beta2: ShareBelowOne = fixed(0.999)
    """Decay of the second moment."""
    epsilon: Share = fixed(1e-8)
    """Added to the root of the second moment."""
    max_grad_norm: Annotated[float, Limits(0)] = fixed(1.0)
    """Gradients are scaled down to this norm; 0 does not clip."""
    schedule: Literal["constant", "linear"] = fixed("constant")
    """After warm-up: constant, or linear to zero at the last step, by rollouts and updates."""
    warmup_steps: Natural = fixed(0)
    """Updates of linear warm-up; those of rollouts without a signal count."""


class Compute(Settings):
    """Where and how precisely."""

    device: str = digits("auto")
    """cpu, cuda, cuda:0, ...; auto takes a GPU if there is one."""
    dtype: Literal["fp32", "bf16", "fp16"] = fixed("fp32")
    """Precision of the forward and backward pass; what trains has fp32 masters."""
    rounding: Literal["stochastic", "nearest"] = fixed("stochastic")
    """How masters become weights of 16 bits: up or down by chance, right on average, or to nearest."""
    engine: Literal["auto", "split", "library"] = digits("auto")
    """How the model is run: in stretches of layers, or by the library's whole forward."""
    sampler: str = member("local")
    """What draws completions: local, this process; vllm, a server of its own; server('http://...')."""
    parallel: str = digits("auto")
    """How several processes train together: none, ddp, zero, fsdp; auto is ddp under torchrun, else none."""
    trunk_bytes: Natural = digits(2**30)
    """Most memory for states of frozen layers kept from sampling; past it they are run again."""
    checkpointing: bool | None = chosen(digits(None))
    """Recompute activations in backward: less memory, more time; auto: where it must be."""
    deterministic: bool = digits(True)
    """On a GPU only kernels that give the same again, which takes some time."""
    agreement_every: Natural = free(10)
    """Steps between checks by the library's forward, after the first five; 0 makes none."""
    quantise: Literal["", "nf4", "nf4_double"] = fixed("")
    """Linear layers that never train rest in 4 bits, `double` with scales in 8 (docs/memory.md)."""


class Trust(Settings):
    """What the files of a model may do. Neither is needed for an ordinary model."""

    trust_remote_code: bool = free(False)
    """Run the Python code that comes with the model."""
    pickled_weights: bool = free(False)
    """Also read weights that are pickled (pytorch_model.bin) and not safetensors."""


class Held(Settings):
    """Evaluation on held-out problems, before and after training."""

    eval_problems: Natural = fixed(256)
    """Held-out problems; 0 does not evaluate."""
    eval_samples: Positive = fixed(4)
    """Sampled completions of each, at the training temperature."""
    eval_every: Natural = free(0)
    """Also after every so many steps; 0 only at the ends. On `tune` where they may end the run."""
    eval_split: Literal["test", "tune"] = fixed("test")
    """Which held-out problems; what is chosen between runs is chosen on `tune`."""
    probe_every: Annotated[int | None, Limits(0)] = chosen(free(None))
    """Steps between answers to the same 64 tune problems; 0 never; auto: 10 under a curriculum
    other than uniform, and in all arms of a study that has one."""


class Records(Settings):
    """What a run writes."""

    checkpoint_every: Natural = free(25)
    """Steps between checkpoints; 0 only at the end."""
    samples_every: Positive = free(1)
    """Steps between those whose completions are written, with prompts and rewards."""
    samples_mib: Natural = free(200)
    """Past this size of samples.jsonl one group of each tenth of these steps is written."""
    anatomy: bool = free(True)
    """At the end, load the base once more and measure what changed in it (docs/anatomy.md)."""
    watch: bool = free(False)
    """Show the run while it goes: `live.html` in its folder, and a view in the terminal."""
    keep_checkpoints: Positive = free(2)
    """How many of the newest checkpoints stay; `modicum extrapolate` reads a line through them."""


class Tracking(Settings):
    """Metrics to a tracker as well, beside the run's own files (docs/trackers.md)."""

    tracker: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = free("none")
    """Also log to this library, offline and into the run folder; each needs its extra."""
    tracker_project: str = free("modicum")
    """The project (W&B, Trackio) or experiment (MLflow) that the run belongs to."""
    tracker_folder: str = free("")
    """Folder of Trackio's or MLflow's store, for runs that share one; empty: the run folder."""
    tracker_online: bool = free(False)
    """Let the tracker use the network, with its own login and environment variables."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tracker_folder", os.path.expanduser(self.tracker_folder))


class TrainConfig(Settings):
    """A whole training run."""

    model: str = free("tiny")
    """`tiny`, a local folder (a model or a PEFT adapter), a GGUF file, or a hub id."""
    base: str = free("")
    """Where the base of `model` is, if that is an adapter; empty: where the adapter says."""
    init_adapter: str = free("")
    """The folder of a PEFT adapter on `model` whose values the adapter that `update` makes begins with."""
    task: str = fixed("arithmetic")
    """Problems, as an expression; `modicum tasks` lists them."""
    reward: str = fixed("accuracy")
    """Weighted sum of terms, such as `accuracy + 0.2*format`; one of yours is `file.py:function`."""
    update: str = fixed("full")
    """What trains, as an expression; `modicum updates` lists and previews."""
    objective: str = fixed("grpo")
    """The loss, such as `grpo(kl=0.04)`."""
    curriculum: str = fixed("uniform")
    """Which problems come next."""
    steps: Natural = length(70)
    """Rollouts at most; each is followed by `updates_per_rollout` optimizer steps."""
    seed: Natural = fixed(0)
    """Of problems, sampling noise and initialisation."""
    out: str = free("")
    """The run folder; empty makes one under runs/ from what differs from the defaults."""
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
        for kind in KINDS:
            if not isinstance(value := getattr(self, kind), str):
                why = f"must be an expression, a text, not {short(value)}"
                raise UserError(f"{kind} {why}; modicum.train({kind}=...) takes objects")
        super().__post_init__()
        object.__setattr__(self, "out", os.path.expanduser(self.out))
        stopping.split_within(self.budget, self.evaluation)
        if self.sampling.temperature == 0:
            why = "makes all completions of a group equal, so nothing can be learnt"
            raise UserError(f"temperature 0 {why}; training needs a temperature above 0")
