"""The folder of a PEFT adapter in the place of a model: its base, with the adapter on top.

What PEFT would only warn of (a tensor that is not in the file, or that no layer takes) is an error
here. Dropout is left out."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from modicum.models.configs import KNOWN
from modicum.models.four_bit import unpack
from modicum.models.identity import combined, config_hash, fingerprints
from modicum.runs import read_object
from modicum.types import UserError

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# What a library raises where a file is not what it should be.
FAULTS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError)
FAULTS += (SafetensorError,)


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT does not warn of what is no matter here."""
    with warnings.catch_warnings():
        # It asks transformers for a name that is to go, and does not know the sizes of norms.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set", UserWarning)  # it sets it right
        warnings.filterwarnings("ignore", "Model has `tie_word", UserWarning)  # `merged` unties
        yield


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).is_file()


def said(folder: Path) -> Mapping[str, Any]:
    """What the config of an adapter says; UserError where it is none that a policy can have."""
    found = read_object(folder / CONFIG)
    kind, task = found.get("peft_type"), found.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{folder} is an adapter for the task {task}, not for a causal model")
    if kind in KNOWN["outside"] or found.get("alora_invocation_tokens"):
        raise UserError.of("outside_layers", folder=folder, kind=kind)
    return found


def base_of(folder: Path, base: str) -> str:
    """What the base of the adapter in a folder is called: `base`, or what its config names."""
    named = base or said(folder).get("base_model_name_or_path")
    if not (named and isinstance(named, str)):
        raise UserError(f"{folder} is an adapter and does not name its base; --base MODEL does")
    return named


def put(model: nn.Module, folder: Path, pickled: bool = False, weights: bool = True) -> Any:
    """`model` with the adapter in a folder on top; without `weights` its layers alone. UserError
    where it does not fit the model or its files are broken."""
    import peft

    facts, place = said(folder), getattr(model, "name_or_path", "")
    try:
        config: Any = peft.PeftConfig.from_peft_type(**{**facts, "inference_mode": False})
        config.task_type, config.base_model_name_or_path = peft.TaskType.CAUSAL_LM, place
        if hasattr(config, "lora_dropout"):
            config.lora_dropout = 0.0
        with torch.random.fork_rng(devices=[]), quiet():
            made: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
            for name, parameter in made.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.float()  # also the lengths of DoRA
            if weights:
                _fill(made, folder, pickled)
    except FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder} does not fit {place}, or is broken: {reason:.300}") from None
    return made.eval()


def _fill(model: Any, folder: Path, pickled: bool) -> None:
    """Set the adapter's tensors to those of the file; all must be there, and no other."""
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    there = (folder / PICKLED).is_file()
    if not (folder / WEIGHTS).is_file() and not (there and pickled):
        raise UserError.of("pickled" if there else "no_weights", folder=folder)
    for tensor in get_peft_model_state_dict(model, save_embedding_layers=False).values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))  # the file must fill them all
    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    if found.unexpected_keys:
        raise UserError.of("no_place", folder=folder, tensor=min(found.unexpected_keys))
    for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder} has no {name}, or numbers in it that are not finite")


def adapter_hash(model: Any, folder: Path) -> str:
    """One hash of the adapter's tensors and of what its config says, its base's place left out."""
    from peft.utils import get_peft_model_state_dict

    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    plain = {name: v for name, v in said(folder).items() if name != "base_model_name_or_path"}
    return combined({**fingerprints(held), "": config_hash(plain)})


def merged(model: Any) -> nn.Module:
    """An ordinary model, an adapter on it added in fp32; `model` is spent afterwards."""
    unpack(model)
    if not hasattr(model, "get_base_model"):
        return model
    base = model.get_base_model()
    ends = head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    # An adapter on the head or on the embedding: the head gets a weight of its own.
    if any(hasattr(end, "base_layer") for end in ends) and head.weight is embedding.weight:
        getattr(head, "base_layer", head).weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    try:
        return model.float().merge_and_unload()
    except (NotImplementedError, AttributeError, ValueError) as error:
        kind = model.peft_config["default"].peft_type.value
        raise UserError.of("no_merge", kind=kind, reason=str(error).splitlines()[0]) from None
