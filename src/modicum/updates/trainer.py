"""An update in transformers.Trainer and in what is built on it, such as TRL's GRPOTrainer.

A thin shell around `driver`; docs/outside.md says what a Trainer brings with it."""

from typing import Any

from transformers import TrainerCallback

from modicum.types import UserError
from modicum.updates.driver import Driver
from modicum.updates.schedule import Schedule


class UpdateCallback(TrainerCallback):
    """Drives an update in a Trainer; `report()` is what was proven when training ended."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.micro_batches = 0
        self.proven: str | None = None
        driver.unlock()

    def report(self) -> str:
        """A sentence on what changed and what did not; RunStopped when it is not as it should be."""
        return self.proven or self.driver.report()

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The Trainer may have put a second adapter beside ours and switched ours off.
        self.driver.unlock()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        # What would silently go wrong.
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UserError("an update needs whole tensors, not shards: no DeepSpeed and no FSDP")
        changes = type(self.driver.prepared.schedule) is not Schedule
        if changes and state.global_step > 0:
            raise UserError.of("trainer_state")
        if changes and args.world_size > 1:
            raise UserError.of("one_process")
        self.micro_batches, self.proven = 0, None
        self.driver.attach(optimizer, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        a_generation = getattr(args, "steps_per_generation", None) or 1
        of_a_policy = a_generation * getattr(args, "num_iterations", 1)  # micro-batches
        self.driver.begin_step(self.micro_batches % of_a_policy == 0)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.driver.after_backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.driver.after_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.micro_batches += 1

    on_step_end = on_substep_end

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.driver.detach()
        # The best model is put back before this, with what rests now as it was then.
        self.proven = self.driver.report(resting=not args.load_best_model_at_end)
