"""Updates: what of a model trains.

To add one: one file with a frozen dataclass, and its row in UPDATES (docs/updates.md)."""

from typing import TYPE_CHECKING

from modicum import spec
from modicum.types import UserError
from modicum.updates import dense
from modicum.updates.adalora import AdaLora
from modicum.updates.base import Method, Placed, Prepared, Selection, Update
from modicum.updates.driver import Driver
from modicum.updates.freezing import AutoFreeze, SlimFit
from modicum.updates.lora import Dora, Lora, LoraFa, LoraPlus, LoraXs, Olora, Pissa, RsLora
from modicum.updates.matrices import Apollo, ApolloMini, GaLore, Muon
from modicum.updates.optimizers import Sgd
from modicum.updates.others import Ia3, LnTuning, Miss, Oft, Shira, TinyLora, Vera
from modicum.updates.sparse import Sparse
from modicum.updates.turns import BAdam, BAdamRatio, Lisa
from modicum.updates.weighing import Rgn, Snr

UPDATES: dict[str, type] = {
    cls.name: cls
    for cls in (
        *(dense.Full, dense.First, dense.Last, dense.Middle, dense.Layers, dense.Every),
        *(dense.Surgical, dense.Parts, dense.BitFit),
        *(Rgn, Snr, AutoFreeze, SlimFit, Lisa, BAdam, BAdamRatio),
        *(Lora, RsLora, LoraPlus, LoraFa, Dora, Pissa, Olora, AdaLora, LoraXs),
        *(Vera, Miss, Ia3, LnTuning, Oft, Shira, TinyLora),
        *(Sparse, Sgd, GaLore, Apollo, ApolloMini, Muon),
    )
}

if TYPE_CHECKING:
    from modicum.updates.trainer import UpdateCallback

__all__ = [
    "UPDATES", "Driver", "Method", "Placed", "Prepared", "Selection", "Update", "callback",
    "parse", "select",
]  # fmt: skip


def parse(text: str) -> Update:
    """The update that an expression such as `last(1) + parts(norm)` names."""
    made = spec.build("update", text, UPDATES)
    if not isinstance(made, Update):
        raise UserError(f"{text!r} is not an update")
    return made


select = parse  # for use outside: select("last(5) + parts(norm)").apply(model)


def callback(prepared: Prepared, max_grad_norm: float = 0.0) -> "UpdateCallback":
    """For transformers.Trainer and TRL: GRPOTrainer(..., callbacks=[callback(prepared)]). With
    `max_grad_norm` the callback clips, after the schedule has seen the gradients; give the Trainer
    max_grad_norm=0 then."""
    from modicum.updates.trainer import UpdateCallback  # transformers is slow to import

    return UpdateCallback(Driver(prepared, max_grad_norm))
