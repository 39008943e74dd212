"""Every metric that a step logs, once: its key, title, units and explanation.

Reports take titles from here, and a test holds the table in docs/metrics.md to it. `reward/TERM`
stands for every term of a reward, `user/NAME` for what functions log.
"""

from dataclasses import dataclass

TERM = "reward/TERM"
# key | title | unit as logged | unit in figures, if drawn | head of a narrow column | what it is
TABLE = """
step                     | Step                        |                |                       |           | index of the step, from 0
reward/mean              | Reward                      |                | mean per completion   | reward    | mean of the weighted reward over all completions that have one
reward/TERM              | Reward term                 | 0 to 1         | mean per completion   |           | mean of one term before weighting, `reward/accuracy` say; its name is the term's expression; missing when no completion had a verdict
reward/errors            | Errors of reward functions  | count          |                       |           | scores that a reward function of your own failed to give; they are 0
user/NAME                | Logged by a function        |                |                       |           | mean of what a reward function of your own gave to `log_metric` in this step (docs/rewards.md)
completions/length_mean  | Completion length           | tokens         | tokens per completion | length    | mean length
completions/length_max   | Longest completion          | tokens         |                       |           | longest
completions/truncated    | Cut at the length limit     | 0 to 1         | completions (%)       | cut       | share that `max_tokens` cut before an end token
completions/distinct     | Different completions       | 0 to 1         | of a group (%)        | distinct  | share of completions that differ from all earlier ones of their group; low means that the policy has nothing left to explore
groups/no_signal         | Groups without a signal     | 0 to 1         | groups (%)            | no signal | share of groups whose rewards are all equal; they give no gradient and are not run in training (unless a KL term acts on them)
curriculum/stage         | Stage of the curriculum     | number         |                       |           | stage of a curriculum that has some, from 0
curriculum/difficulty    | Difficulty of the problems  | the task's own |                       |           | mean difficulty of the step's problems that have one, under a curriculum
probe/accuracy           | Accuracy on the probe set   | 0 to 1         | correct answers (%)   | probe     | accuracy on the same 64 tune problems, an answer each, before the step is trained; what to compare between curricula, of which training reward says nothing (docs/curricula.md)
policy/loss              | Loss                        |                |                       |           | the loss of the last update; near 0 on policy, where it is the gradient that counts
policy/entropy           | Entropy of the policy       | nats           | nats per token        | entropy   | mean entropy of the sampling distribution at the sampled positions
policy/kl                | KL from the reference       | nats           | nats per token        | KL        | mean k3 estimate of KL(policy, reference) per token (`objectives.kl3`); 0 without a KL term
policy/clip_fraction     | Clip share                  | 0 to 1         | tokens (%)            | clipped   | share of tokens whose ratio the clip cut; 0 in the first update of a rollout
policy/ratio_error       | Error of the ratio          |                |                       |           | mean of abs(ratio - 1); in the first update it is the disagreement of sampler and trainer, about 1e-6 in fp32
policy/grad_norm         | Norm of the gradient        |                | before clipping       | gradient  | norm of the gradient of all that trains, before clipping
policy/learning_rate     | Learning rate               |                | of the last update    |           | rate of the last update
policy/skipped_steps     | Skipped steps               | count          |                       |           | optimizer steps skipped so far because loss or gradient was not finite
tokens/generated         | Generated tokens            | count          |                       |           | tokens of completions so far, also of groups without a signal
flops/sampling           | FLOPs of sampling           | FLOPs          |                       |           | matrix FLOPs of the step's rollout, as this engine did it (docs/plan.md)
flops/training           | FLOPs of training           | FLOPs          |                       |           | those of its optimizer steps
flops/total              | FLOPs so far                | FLOPs          |                       |           | all of them so far
update/active_parameters | Parameters in training      | count          | count                 |           | numbers that train in this step; under a schedule it changes
update/arrived           | Learnt and arrived          | share          | share                 |           | how much of what the fp32 masters learnt is in the rounded weights, since the start: with their changes p of the weights and m of the masters sum(p m) / sum(m m) over a fixed sample of entries; 1 is all of it (docs/precision.md); missing where nothing is rounded
time/step_seconds        | Time per step               | seconds        | seconds               |           | the whole step
time/sampling_seconds    | Time of sampling            | seconds        |                       |           | sampling the completions
time/training_seconds    | Time of training            | seconds        |                       |           | reference, forward, backward, optimizer
time/agreement_seconds   | Time of the agreement check | seconds        |                       |           | the agreement proof: versions of weights, and in some steps the library's forward
time/tokens_per_second   | Speed                       | tokens/s       |                       |           | completion tokens over the whole step
memory/peak_bytes        | Peak memory                 | bytes          |                       |           | peak since the run began: of the GPU if one is used, else resident memory of the process, libraries included
"""


@dataclass(frozen=True)
class Metric:
    """A line of the table; `shown` and `short` are empty where no figure has it."""

    key: str
    title: str
    unit: str
    shown: str
    short: str
    text: str

    @property
    def factor(self) -> float:
        """From the logged unit to the shown one."""
        return 100.0 if self.shown.endswith("(%)") else 1.0

    @property
    def words(self) -> str:
        """The title within a sentence; KL stays KL."""
        return self.title if self.title[1].isupper() else self.title[0].lower() + self.title[1:]


METRICS = {
    line.partition(" ")[0]: Metric(*map(str.strip, line.split(" | ")))
    for line in TABLE.strip().splitlines()
}


def metric_of(key: str) -> Metric:
    """The metric of a key, also of a term of a reward."""
    name, term = key.removeprefix("reward/"), METRICS[TERM]
    own = Metric(key, f"{term.title} {name}", term.unit, term.shown, name, "")
    return METRICS.get(key, own)
