"""Seconds of a step and of a run, as a roofline: an estimate, with its assumptions (docs/plan.md).

Shares: on a CPU those that docs/engine.md measured; on a GPU assumed.
"""

from dataclasses import dataclass
from typing import NamedTuple

from modicum.config import TrainConfig
from modicum.engine.flops import StepFlops
from modicum.plan.hardware import DeviceRates
from modicum.plan.shapes import Lengths

SHARE = {"cpu": 0.7, "cuda": 0.4}  # of the peak rate of matrix products
BANDWIDTH_SHARE = {"cpu": 0.7, "cuda": 0.6}
LAYER_SECONDS = {"cpu": 3e-4, "cuda": 5e-4}  # of eager calls


@dataclass(frozen=True)
class Times:
    """Seconds: of a step's two halves, and of the run with its evaluations."""

    sampling: float
    training: float
    evaluation: float  # of one evaluation
    run: float

    @property
    def step(self) -> float:
        """A step."""
        return self.sampling + self.training


class DecodingCost(NamedTuple):
    """What decoding costs in a model."""

    layers: int
    weight_bytes: int
    token_flops: float  # forward FLOPs of one token, scores left out
    cache_bytes: int  # of keys and values, for a token


def times(
    config: TrainConfig,
    decoder: DecodingCost,
    flops: StepFlops,
    lengths: Lengths,
    rates: DeviceRates,
    on: str,
) -> Times:
    """The times of a run on a device (`on` is cpu or cuda) of such rates."""
    rate = rates.flops(config.compute.dtype) * SHARE[on]
    bandwidth = rates.bandwidth * BANDWIDTH_SHARE[on]

    def sampled(prompts: int, group: int) -> float:
        together = max(1, config.batch.rollout_batch // group)
        total = 0.0
        for start in range(0, prompts, together):
            count = min(together, prompts - start)
            # Rows leave as they end, so that on average this many live.
            rows = count * group * lengths.completion / lengths.longest
            held = count * lengths.prompt + rows * lengths.longest / 2
            token = max(
                rows * decoder.token_flops / rate,
                (decoder.weight_bytes + held * decoder.cache_bytes) / bandwidth,
                decoder.layers * LAYER_SECONDS[on],
            )
            total += count * lengths.prompt * decoder.token_flops / rate + lengths.longest * token
        return total

    batch, held = config.batch, config.evaluation
    sampling = sampled(batch.prompts_per_step, batch.group_size)
    training = (flops.training + flops.critic) / rate
    evaluation = 0.0
    if held.eval_problems:
        evaluation = sampled(held.eval_problems, 1) + sampled(held.eval_problems, held.eval_samples)
    between = (config.steps - 1) // held.eval_every if held.eval_every else 0
    run = config.steps * (sampling + training) + (2 + between) * evaluation
    return Times(sampling, training, evaluation, run)
