"""What the config of a model says: whether it is a causal language model, and its sizes.

Of GGUF files, which the library reads, this mends what it leaves wrong."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modicum.types import UserError

# Heads that are no language model's: such a file has none, and a tied one would hide it.
OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]|RewardModel")
KNOWN = tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))


def causal(name: str, config: Any) -> Any:
    """The config of the causal language model that `config` is of; of more parts that of the text.
    UserError for what is none, or cannot be trained on text."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return config
    declared = [a for a in (getattr(config, "architectures", None) or []) if a]
    for made in (getattr(transformers, a, None) for a in declared if a.endswith("ForCausalLM")):
        if made is not None and made.config_class is type(config):  # Mllama's text is not mapped
            transformers.AutoModelForCausalLM.register(type(config), made, exist_ok=True)
    text = getattr(config, "text_config", None)
    chosen: Any = text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config
    if type(chosen) not in MODEL_FOR_CAUSAL_LM_MAPPING or any(map(OTHER_HEAD.search, declared)):
        raise UserError.of("not_causal", name=name, of=", ".join(declared) or type(config).__name__)
    reason = KNOWN["refused"].get(config.model_type, "")
    if not hasattr(chosen.get_text_config(decoder=True), "num_hidden_layers"):
        reason = "its config has no number of layers (num_hidden_layers)"
    if reason:
        raise UserError(f"{name}: the architecture {config.model_type!r} cannot be run: {reason}")
    if getattr(chosen, "is_decoder", None) is False and not chosen.is_encoder_decoder:
        raise UserError.of("encoder", name=name)
    if hasattr(chosen, "rescale_every"):
        chosen.rescale_every = 0  # RWKV would halve its weights in place while it is evaluated
    return chosen


def note(name: str, kind: str, said: Mapping[str, Any]) -> str:
    """What to say of a model with more parts whose text was loaded, by what its file says."""
    parts = {k.removesuffix("_config") for k in said if k.endswith("_config")}
    others = ", ".join(sorted(parts - {"text", "quantization"})) or "other parts"
    done = f"{kind} is loaded, trained and exported, and not its {others}"
    return f"{name} has more parts than text: {done}"


def numbers(config: Any, name: str) -> list[int]:
    """A number of every layer, as layers may differ (Gemma 4); [] where the config has none."""
    found: list[Any] = []
    for place, layer in enumerate(config.get_text_config().per_layer_config):
        value = getattr(layer, name, None)
        found.append(value[place] if isinstance(value, list | tuple) else value)
    return [] if None in found else found


def attention_sizes(config: Any) -> list[tuple[int, int, int]]:
    """(query heads, key/value heads, size of a head) of every layer; Mamba has no heads."""
    layers = config.get_text_config().num_hidden_layers
    queries = numbers(config, "num_attention_heads") or [0] * layers
    shared = numbers(config, "num_key_value_heads") or queries
    hidden = numbers(config, "hidden_size") or [0] * layers
    sizes = numbers(config, "head_dim")
    sizes = sizes or [h // max(q, 1) for h, q in zip(hidden, queries, strict=True)]
    return list(zip(queries, shared, sizes, strict=True))


def files(path: str) -> dict[str, str]:
    """Keyword arguments that make `from_pretrained(folder)` read the GGUF file `path`."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{path} needs the package gguf: pip install 'modicum[gguf]'") from None
    return {"gguf_file": Path(path).name}


def mend_tokenizer(path: str, tokenizer: Any) -> Any:
    """`tokenizer` with the cutting rules that the file names, where the library's differ."""
    from gguf import GGUFReader

    rules = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if rules is not None and rules.contents() == "smollm":
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
    return tokenizer


def mend_model(model: Any) -> Any:
    """`model` as an ordinary one: its weights are plain now, and it can be saved."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    return model
