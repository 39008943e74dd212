"""What the comparison runs on: word problems, and a small model whose tokens are their words."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
THINGS = ("pencils", "apples", "marbles", "stickers", "coins", "shells")
TEXT = (
    "{name} has {a} boxes with {b} {things} in each box. {name} gives {c} {things} to each of"
    " {d} friends and then buys {e} more. How many {things} does {name} have now?"
)
SIZE = 128  # vocabulary of the small model


def problems(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Word problems of about the length of GSM8K's, with their answers."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        b, c, d, e = (draw.randint(2, 12) for _ in range(4))
        a = draw.randint(c * d // b + 1, c * d // b + 9)
        names = {"name": draw.choice(NAMES), "things": draw.choice(THINGS)}
        text = TEXT.format(a=a, b=b, c=c, d=d, e=e, **names)
        made.append({"question": text, "answer": str(a * b - c * d + e)})
    return made


def write_problems(path: Path, count: int = 256) -> None:
    """A file of word problems for the task `file`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in problems(count)), encoding="utf-8")


def write_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer of so many tokens: the words and digits of the problems, and numbered ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = " ".join(row["question"] for row in problems(2000))
    words = sorted(set(re.findall(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]", text)))
    tokens = ["<end>", "<pad>", *words]
    tokens += [f"<{i}>" for i in range(len(tokens), size)]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<end>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def write_small_model(folder: Path) -> None:
    """Six layers of width 256, random weights, a vocabulary of words and digits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(folder, SIZE)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=SIZE,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
