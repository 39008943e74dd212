"""What a run works with: policy, update, optimizer, proof, problems, rewards, counters."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from modicum import draws, objectives, rewards, tasks, updates
from modicum.config import TrainConfig
from modicum.curricula import Curriculum, Order
from modicum.engine import Policy, policy_of
from modicum.engine.agreement import Agreement
from modicum.engine.flops import FlopCounter
from modicum.engine.reward import opened
from modicum.evaluate import held_out
from modicum.models import adapters
from modicum.models.four_bit import count
from modicum.models.identity import Identity
from modicum.models.load import inner, load
from modicum.models.precision import loses_steps, too_fine
from modicum.parallel import Team
from modicum.parts import RunParts, correction_of, first_updates
from modicum.plan.shapes import rested
from modicum.plan.sizes import settle
from modicum.report.words import environment
from modicum.serving import members
from modicum.stopping import Stop, split_within
from modicum.tasks import prompts
from modicum.tasks.examples import Examples, Sizes, draw, whole, without
from modicum.training.critic import Critic, base_of
from modicum.training.optimization import Optimization
from modicum.types import Problem, UserError
from modicum.updates.stepper import StepCounters


@dataclass
class Counters(StepCounters):
    """Counts since the beginning of a run, resumed or not; the stepper's are the stepper's."""

    rollouts: int = 0  # steps of the run that have ended, those without a signal too
    updates: int = 0  # of the present rollout, skipped ones too
    generated_tokens: int = 0
    agreement_max: float = 0.0
    trained_seconds: float = 0.0
    checked_first: bool = False  # whether the change proof of the first step has been made
    flops: float = 0.0  # matrix FLOPs of sampling and training so far
    last_spent: float = 0.0  # what the last step took of the budget, in its unit
    empty_steps: int = 0  # steps in which no completion had a part in the loss
    ledger: dict[str, dict[str, int]] = field(default_factory=dict)
    """Completions and tokens by purpose, as `Policy.ledger`, which it is."""

    def spent(self, unit: str) -> float:
        """What was spent so far: tokens, flops or seconds."""
        tokens, flops, seconds = self.generated_tokens, self.flops, self.trained_seconds
        return {"tokens": tokens, "flops": flops, "seconds": seconds}[unit]


@dataclass
class Session:
    """Everything that a run works with, after its config has been read."""

    config: TrainConfig  # with the learning rate that is used, once it is known
    update: updates.Update
    task: tasks.Task
    reward: rewards.Reward
    objective: objectives.Objective
    order: Order
    policy: Policy
    examples: Examples  # worked ones, before every question
    prepared: updates.Prepared
    optimization: Optimization
    counters: Counters
    identity: Identity  # of the base, before the update was applied
    critic: Critic | None = None  # None where the objective has none
    silence: str = ""  # why the first steps had no signal, as last found
    parallel: Team = field(default_factory=Team)  # the processes that train together

    def __post_init__(self) -> None:
        config, goal, compute = self.config, self.objective, self.config.compute
        self.stop, self.choice = Stop(config.budget), draws.parse(config.batch.groups)
        self.policy.ledger, self.proof = self.counters.ledger, self.optimization.proof
        self.correction = correction_of(config)
        self.agreement = Agreement(compute.dtype, compute.agreement_every, config.sampling)
        asked = goal.needs_reference, goal.entropy_share < 1
        self.flops = FlopCounter(self.prepared, self.policy.scorer, config.batch, *asked)
        self.flops.judged = bool(self.reward.learned)

    @property
    def learning_rate(self) -> float:
        """The rate after warm-up and before decay; 0 while it is to be found yet."""
        return self.config.optimizer.learning_rate or 0.0

    @property
    def present_rate(self) -> float:
        """The rate of the next update, by its number; rollouts without a signal have numbers too."""
        settings, counters = self.config.optimizer, self.counters
        each = self.config.batch.updates_per_rollout
        index, total = counters.rollouts * each + counters.updates, self.config.steps * each
        if index < settings.warmup_steps:
            return self.learning_rate * (index + 1) / settings.warmup_steps
        if settings.schedule == "constant":
            return self.learning_rate
        left = (total - index) / max(1, total - settings.warmup_steps)
        if self.config.budget.budget:
            left = min(left, 1 - self.progress(0))
        return self.learning_rate * left

    def progress(self, done: int) -> float:
        """How much of the run lies behind it after `done` steps, from 0 to 1."""
        budget = self.config.budget
        of_steps = done / self.config.steps if self.config.steps else 1.0
        spent = self.counters.spent(budget.budget_unit)
        return min(1.0, max(of_steps, spent / budget.budget if budget.budget else 0.0))

    def ended(self, done: int) -> bool:
        """Whether the run ends after `done` steps: it is to, or goes no nearer to its budget."""
        budget, counters = self.config.budget, self.counters
        spent = counters.spent(budget.budget_unit) + counters.last_spent / 2
        over = bool(budget.budget) and done > 0 and spent >= budget.budget
        return over or done >= self.config.steps or bool(self.stop.reason)

    def resize(self, **sizes: Any) -> None:
        """Go on with other batches; what they change is memory."""
        self.config = replace(self.config, batch=replace(self.config.batch, **sizes))
        self.flops.batch = self.config.batch

    def count(self, tokens: int, flops: float, seconds: float) -> None:
        """A step has ended that generated and cost so much."""
        counters, unit = self.counters, self.config.budget.budget_unit
        before = counters.spent(unit)
        counters.rollouts, counters.updates = counters.rollouts + 1, 0
        counters.generated_tokens += tokens
        counters.trained_seconds += seconds
        counters.flops += flops
        counters.last_spent = counters.spent(unit) - before

    def prove(self, when: str) -> str:
        """What the proofs say of changes, those of a critic, and of replicas; RunStopped else."""
        found, critic = self.proof.check(when), self.critic
        more = f"; critic: {critic.steps.proof.check(f'critic, {when}')}" if critic else ""
        alike = self.parallel.prove(when, lambda: {**self.prepared.trainable, **self.tensors()})
        return found + more + alike

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds: of the optimization, the schedule, the critic."""
        schedule, critic = self.prepared.schedule.tensors(), self.critic
        found = self.optimization.tensors()
        found |= {f"schedule/{name}": t.detach().contiguous() for name, t in schedule.items()}
        steps = critic.steps.tensors() if critic else {}
        return found | {f"critic/{name}": tensor for name, tensor in steps.items()}

    def agreed(self, nats: float) -> None:
        """The agreement proof found this mean difference of log-probs, and was content."""
        self.counters.agreement_max = max(self.counters.agreement_max, *self.parallel.lines([nats]))

    @property
    def trainable_parameters(self) -> int:
        """How many numbers may train."""
        return self.optimization.size(self.prepared.trainable)

    @property
    def active_parameters(self) -> int:
        """How many numbers train now."""
        return self.optimization.size(self.prepared.active)

    @property
    def total_parameters(self) -> int:
        """How many numbers the model has, adapters included."""
        return sum(map(count, self.policy.model.parameters()))


def prepare(
    config: TrainConfig,
    parts: RunParts | None = None,
    check: Callable[[Identity], None] = lambda found: None,
    team: Team | None = None,
) -> Session:
    """Load the model, apply the update, and build what the loop needs.

    `check` is shown what was loaded before an update, which might not fit, is applied to it. `team`
    are the processes of the run; without, it is this one."""
    team = team or Team()
    config, _ = settle(config, parts)
    task, update, reward, objective, curriculum = (parts or RunParts()).resolve(config)
    compute = config.compute
    # A bad task or sampler, and a reward that does not go with it, fail before the model loads.
    members.parse(compute.sampler).require()
    first = task.problem("train", config.seed, 0)
    for _, term in reward.terms:
        term.require(first)
    Stop(config.budget).check(str(term) for _, term in reward.terms)
    examples, held = draw(task, config.sampling), _held_out(task, config)
    order = _begin(curriculum, without(task, examples), reward, config)
    given = config.model, team.device or compute.device, compute.dtype, config.trust, config.base
    loaded = adapters.known(load(*given, rested(config, update)), config.init_adapter)
    check(loaded.identity)
    asked = [*whole(task, "train"), *held]
    sizes = Sizes(loaded.tokenizer, config.sampling, examples, loaded.model.config)
    short = sizes.settle(task, asked)
    if short is not task:
        task, order = short, _begin(curriculum, without(short, examples), reward, config)
        task.problem("train", config.seed, 0)
    if compute.quantise and getattr(objective, "owns", False):
        raise UserError(f"quantise: {objective} has a model of its own, which would rest in none")
    apart = base_of(objective, update, loaded.model)
    prepared = adapters.begin(update.apply(loaded.model, config.seed), config)
    if objective.needs_reference or reward.learned:
        prepared.keep_reference()
    policy = policy_of(loaded, prepared, compute, config.batch.rollout_batch)
    policy.draw = team.sample
    written = loaded.tokenizer, config.sampling, examples
    known = (
        policy,
        prepared,
        loaded.identity.bare,
        lambda problem: prompts.encode(problem, *written),
    )
    begun = [(weight, term.begin(lambda of: opened(of, *known))) for weight, term in reward.terms]
    reward = rewards.Reward(tuple(begun))
    prepared.schedule.plan(config.steps * config.batch.updates_per_rollout)
    # What measured difficulties and fitted rewards took is the run's as well.
    spent = [("difficulty", order.measured.spent)] if order.measured is not None else []
    reports = [term.report().get("spent") for _, term in reward.terms]
    spent += [("pairs", found) for found in reports if found]
    counters = Counters(generated_tokens=sum(of["tokens"] for _, of in spent), ledger=dict(spent))
    stochastic = compute.rounding == "stochastic"
    optimization = Optimization(prepared, config.optimizer, counters, config.seed, stochastic, team)
    chosen, made = (update, task, reward, objective, order), (policy, examples, prepared)
    session = Session(config, *chosen, *made, optimization, counters, loaded.identity)
    session.parallel = team
    if objective.has_critic:
        session.critic = Critic(session, apart)
    return session


def _begin(
    curriculum: Curriculum, task: tasks.Task, reward: rewards.Reward, config: TrainConfig
) -> Order:
    """The order of a run; UserError where it cannot learn or has too few problems."""
    order = curriculum.begin(task, config.seed)
    if order.learns and "accuracy" not in [str(term) for _, term in reward.terms]:
        raise UserError.of("needs_accuracy", curriculum=config.curriculum, reward=reward)
    order.look(config.batch.prompts_per_step, config.steps)
    return order


def _held_out(task: tasks.Task, config: TrainConfig) -> list[Problem]:
    """The problems of the evaluations, of a task that has an end; UserError if there are none."""
    held, found = config.evaluation, list[Problem]()
    if not held.eval_problems:
        return []
    try:
        for split in dict.fromkeys((held.eval_split, split_within(config.budget, held))):
            if task.size(split) == 0:
                task.problem(split, config.seed, 0)
            if task.size(split) is not None:
                found += held_out(task, split, held.eval_problems)
        return found
    except UserError as error:
        raise UserError(f"{error}, or set --eval-problems=0") from None


def notes(session: Session) -> list[str]:
    """What the user should know before the first step."""
    config, compute, policy = session.config, session.config.compute, session.policy
    measured, rate, scorer = session.order.measured, session.learning_rate, policy.scorer
    whole = compute.engine == "auto" and not scorer.splits
    on_gpu = policy.device.type == "cuda" and compute.dtype == "bf16"
    trainable = session.prepared.trainable
    lossy = {name: p for name, p in trainable.items() if loses_steps(p, compute.rounding)}
    template = environment().get_template("notes.txt")
    told = template.render(
        measured=measured,
        other_base=measured is not None and measured.base != session.identity.bare.hashes,
        unknown=whole and repr(inner(policy.model).config.model_type),
        masked=config.batch.cut == "mask",
        slow=on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False),
        lost=too_fine(lossy, rate),
        rate=rate,
    )
    updates, terms = first_updates(config), len(session.reward.terms)
    return [
        *tasks.notes(session.task),
        *session.prepared.notes,
        *scorer.notes,
        *prompts.notes(policy.tokenizer, config.sampling),
        *objectives.notes(session.objective, updates, terms),
        *session.order.look(config.batch.prompts_per_step, config.steps),
        *told.splitlines(),
    ]
