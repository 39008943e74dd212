"""Where an adapter goes, the matrices that PEFT can put one beside, and which never train and can rest.

The first are the layers that multiply by a matrix and are called as such; experts that lie in one
tensor are reached as parameters, by `lora(experts=True)`."""

from collections.abc import Collection

from torch import nn

from modicum.models.configs import KNOWN
from modicum.models.four_bit import count, plain, put
from modicum.models.linear import is_matrix
from modicum.report.words import say
from modicum.types import UserError
from modicum.updates.base import Prepared, Selection, Update, selected
from modicum.updates.layout import WORDS, layer_of
from modicum.updates.products import ADAPTER

MOST_SHOWN = 4
WORTH_SAYING = 0.05  # routers, short convolutions and the like are less


def linear_layers(model: nn.Module, where: Selection | None) -> list[str]:
    """Names of the layers to adapt: the selected ones with a matrix, or all but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    fused = model.config.model_type in KNOWN["mambas"]  # type: ignore[union-attr]
    unfit = ("dt_proj", "out_proj") if fused else ("dt_proj",)  # read, and not called
    named = model.named_modules()
    linear = {n: m for n, m in named if is_matrix(m) and n.rpartition(".")[2] not in unfit}
    if where is None:
        return [name for name, module in linear.items() if module is not head]
    # By identity: a tied head has no name of its own among the parameters.
    chosen = {id(parameter) for parameter in where.select(model).values()}
    found = [name for name, module in linear.items() if id(module.weight) in chosen]
    tied = head is not None and head.weight is model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    if any(linear[name] is head for name in found) and tied:
        raise UserError(f"the head is tied to the embedding and takes no adapter ({where})")
    return found


def experts(model: nn.Module, where: Selection | None) -> list[str]:
    """Names of the tensors that hold a matrix for every expert, in the layers or selected."""
    return [n for n, p in selected(model, where).items() if _of_experts(n, p)]


def _of_experts(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 3 and "conv" not in name and layer_of(name) is not None


def unreached(model: nn.Module, where: Selection | None, reached: Collection[str]) -> str:
    """A sentence on the matrices of layers that are not `reached` by an adapter; empty for few."""
    left: dict[str, int] = {}
    total, experts = 0, False
    for name, parameter in selected(model, where).items():
        if parameter.ndim < 2 or layer_of(name) is None:
            continue
        total += count(parameter)
        if not {name, name.rpartition(".")[0]} & set(reached):
            kind = WORDS["layer"].sub(lambda at: at[0].replace(at[1], "*"), name, count=1)
            left[kind] = left.get(kind, 0) + count(parameter)
            experts = experts or _of_experts(name, parameter)
    share = sum(left.values()) / max(total, 1)
    largest = sorted(left, key=lambda kind: -left[kind])
    shown = ", ".join(largest[:MOST_SHOWN]) + (", ..." if len(largest) > MOST_SHOWN else "")
    few = share < WORTH_SAYING
    return "" if few else say("unreached", share=share, shown=shown, experts=experts)


def rest(prepared: Prepared, update: Update, how: str) -> None:
    """Put the decoder's linear layers that never train under an update in 4 bits. UserError where
    there are none, an adapter reads the weights, or other code of the architecture might."""
    from modicum.models.decoder import view  # transformers is slow to import

    model = prepared.model
    if view(model) is None:
        raise UserError.of("quantise_kind", config=model.config)
    if getattr(prepared.adapter, "reads_base", False):
        raise UserError.of("quantise_reads", update=update)
    inside = [(n, m) for n, m in model.named_modules() if layer_of(f"{n}.") is not None]
    linear = [(n, m) for n, m in inside if type(m) is nn.Linear and not n.endswith(f".{ADAPTER}")]
    trained = {id(p) for p in prepared.trainable.values()}
    found = [name for name, layer in linear if id(layer.weight) not in trained]
    if not found:
        raise UserError.of("quantise_all", update=update)
    put(model, {plain(name) for name in found}, how)
