"""GGUF files: one file with a model and its tokenizer, dequantised to ordinary weights.

The library reads them (`gguf_file=`); this mends what it leaves wrong. The loaded config
still claims a quantisation and refuses to be saved. And `tokenizer.ggml.pre`, which names
how text is cut before the merges, is not read: for SmolLM, digits stand alone.
"""

from pathlib import Path
from typing import Any

from modicum.types import UserError


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

        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [
                Digits(individual_digits=True),
                ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def mend_model(model: Any) -> Any:
    """`model` as an ordinary one: its weights are plain now, and it can be saved."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    return model
