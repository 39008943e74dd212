"""The folder of a PEFT adapter in the place of a model: its base, with the adapter on top.

What PEFT would only warn of (a tensor that is not in the file, or that no layer takes) is an error
here. Dropout is left out."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from modicum.config import TrainConfig
from modicum.models.configs import KNOWN
from modicum.models.four_bit import unpack
from modicum.models.identity import combined, config_hash, fingerprints
from modicum.report.words import say
from modicum.runs import file_hash, read_object
from modicum.types import UserError

DESCRIBED = "modicum.json"  # what an export of ours says of itself
CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# What a config says beside what its tensors are multiplied by and where they lie, which their names say.
NO_MATTER = re.compile(
    r"^(init_|base_|task|target_|revision|inference|auto_map|peft_ver|exclude|layers_to|layers_pat)"
    r"|dropout|seed|prng|_config$|_modules$|^ensure_|^total_step|^runtime"
)
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


@contextmanager
def _fitting(folder: Path, place: str) -> Iterator[None]:
    """What goes wrong is one line: the adapter in a folder is not for `place`, or no good."""
    try:
        yield
    except FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder} does not fit {place}, or is broken: {reason:.300}") from None


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
    """What the base of the adapter in a folder is called: `base`, where our export has found it if it
    is there still, or what its config names."""
    there = read_object(folder / DESCRIBED, optional=True).get("base_folder")
    if not base and isinstance(there, str) and (folder / there).exists():
        return str((folder / there).resolve())
    named = base or said(folder).get("base_model_name_or_path")
    if not (named and isinstance(named, str)):
        raise UserError(f"{folder} is an adapter and does not name its base; --base MODEL does")
    return named


def put(model: nn.Module, folder: Path, pickled: bool = False, weights: bool = True) -> Any:
    """`model` with the adapter in a folder on top; without `weights` its layers alone. UserError
    where it does not fit the model or its files are broken."""
    import peft

    facts, place = said(folder), getattr(model, "name_or_path", "")
    with _fitting(folder, place):
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


def begin(prepared: Any, config: TrainConfig) -> Any:
    """An update that was applied, its adapter with the values of the one that it is to begin with, if
    any. UserError where that is of another kind, says other numbers, or has other tensors."""
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    if not config.init_adapter:
        return prepared
    folder, what = Path(config.init_adapter).expanduser(), config.update
    if not prepared.reference_is_bare:
        raise UserError(f"init_adapter: {what} is no adapter on a base that stays as it is")
    with _fitting(folder, what):
        (ours,), model = prepared.model.peft_config.values(), prepared.model
        here = {n: v or None for n, v in ours.to_dict().items() if not NO_MATTER.search(n)}
        there = {name: said(folder).get(name, value) or None for name, value in here.items()}
        held = get_peft_model_state_dict(model, save_embedding_layers=False)
        found = load_peft_weights(str(folder), device="cpu")
        for facts, tensors in ((here, held), (there, found)):
            facts |= {f"the tensor {name}": tuple(t.shape) for name, t in tensors.items()}
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise UserError(f"{name} is {there.get(name)!s}, not {here.get(name)!s}")
        _fill(model, folder, pickled=False)
    prepared.told.append(say("begins_with", folder=folder))
    return prepared


def known(loaded: Any, place: str) -> Any:
    """A base that was loaded, known also by the adapter to begin with, if there is a `place`. UserError
    where none is there, or one of another base, as far as an export says that."""
    if not place:
        return loaded
    folder, hashes = Path(place).expanduser(), loaded.identity.hashes
    files = [folder / name for name in (CONFIG, WEIGHTS)]
    if not all(path.is_file() for path in files):
        made = "as `modicum export RUN --format adapter` writes"
        raise UserError(f"init_adapter: {folder} is no folder with {CONFIG} and {WEIGHTS}, {made}")
    told = read_object(folder / DESCRIBED, optional=True).get("base_hash", hashes["base_hash"])
    past = f"init_adapter: {folder} was trained on"
    loaded.identity.require({**hashes, "base_hash": told}, past, "--model")
    found = combined({path.name: file_hash(path) for path in files})
    return replace(loaded, identity=replace(loaded.identity, hashes={**hashes, "init_hash": found}))


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
