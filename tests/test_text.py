"""Texts of completions: stop strings on any token boundary, special tokens, opened thinking."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modicum.engine import text
from modicum.engine.text import Texts, begun
from modicum.models.load import TINY
from modicum.types import Completion

SMOLLM2 = Path(__file__).resolve().parent.parent / "models" / "SmolLM2-135M-Instruct"
CORPUS = [
    "<think> 2+2 is 4 </think> <answer> 4 </answer>\nUser: What is 3+4?\nAssistant: it is 7.",
    "The answer is 12 apples. User: so, 3 + 4 = 7; the end.\n\n",
] * 8
PIECES = [
    "</answer>",
    "\nUser:",
    "文字",
    "é",
    " the end.",
    "User: ",
    "🧮!",
    "</i>",
    "4 ",
    "a",
    "\n",
]


@cache
def tokenizer_of(kind: str) -> Any:
    """A small tokenizer: byte-level (GPT-2), bytes where letters lack (Llama), word pieces."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "tiny" or kind == "smollm2":
        return AutoTokenizer.from_pretrained(TINY if kind == "tiny" else SMOLLM2)
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "sentences":
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        core.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        special += [f"<0x{n:02X}>" for n in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    else:
        core = Tokenizer(models.WordPiece(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        core.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=special, show_progress=False
        )
    core.train_from_iterator(CORPUS, trainer)
    if kind == "sentences":  # bytes are no special tokens
        core = Tokenizer.from_str(core.to_str().replace('"special":true', '"special":false'))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


KINDS = [
    "tiny",
    "bytes",
    "sentences",
    "words",
    pytest.param(
        "smollm2", marks=pytest.mark.skipif(not SMOLLM2.is_dir(), reason="no SmolLM2 here")
    ),
]


@pytest.mark.parametrize("tail", [2, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_stops_where_its_whole_text_first_has_a_stop_string(
    kind: str, tail: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the whole row were decoded after each token, on rows of texts and of random tokens."""
    monkeypatch.setattr(text, "TAIL", tail)
    tokenizer, draw, stopped = tokenizer_of(kind), random.Random(0), 0
    for _ in range(60):
        stops = tuple(draw.sample(PIECES, draw.randint(1, 3)))
        row: list[int] = []
        while len(row) < 30:
            words = draw.choice(PIECES + CORPUS[0].split())
            ids = tokenizer(words, add_special_tokens=False)["input_ids"]
            noise = [draw.randrange(len(tokenizer)) for _ in range(draw.randint(0, 3))]
            row += draw.choice([ids, ids, ids[:-1], noise])
        plain = texts = None
        for n in range(1, len(row) + 1):
            shown = tokenizer.decode(
                row[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            if any(stop in shown for stop in stops):
                plain = n
                break
        finds = Texts(tokenizer, (), stops)
        for n in range(1, len(row) + 1):
            if finds.ended(row[:n]):
                texts = n
                break
        assert texts == plain
        stopped += plain is not None
    assert stopped > 8


def test_a_stop_string_may_begin_and_end_within_tokens() -> None:
    core = Tokenizer(models.BPE())
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)

    def ends(stops: tuple[str, ...], *words: str) -> tuple[int | None, str]:
        """After how many words a row stops, and its text."""
        row, texts = [WORDS.index(word) for word in words], Texts(tokenizer, (), stops)
        stop = next((n for n in range(1, len(row) + 1) if texts.ended(row[:n])), None)
        return stop, texts.cut(texts([row[:stop]])[0])

    answer = ("</answer>", "\nUser:")
    assert ends(answer, "4 </", "ans", "wer>\n", "x") == (3, "4 </answer>")
    assert ends(answer, "4 </answer>\nUser: x", "x") == (1, "4 </answer>")
    assert ends(answer, "4\n", "User: x", "x") == (2, "4")
    assert ends(answer, "x", "User: x", "x") == (None, "xUser: xx")
    assert ends(answer, "ans", "wer>\n") == (None, "answer>\n")
    assert ends(("User:", "x"), "4\n", "User: x") == (2, "4\n")
    assert ends(("x",), "4\n", "User: x", "x") == (2, "4\nUser: x")
    assert ends(("\n",), "4 </", "wer>\n", "x") == (2, "4 </wer>\n")
    assert ends((), "4 </answer>\nUser: x", "x") == (None, "4 </answer>\nUser: xx")


WORDS = ["4 </", "ans", "wer>\n", "4 </answer>\nUser: x", "4\n", "User: x", "x"]


def test_characters_may_be_cut_between_tokens() -> None:
    tokenizer = tokenizer_of("bytes")
    row = tokenizer("é 文字 x", add_special_tokens=False)["input_ids"]
    texts = Texts(tokenizer, (), ("文字",))
    assert [n for n in range(1, len(row) + 1) if texts.ended(row[:n])] == [9]
    assert texts.cut(texts([row])[0]) == "é 文字"


def test_special_tokens_are_left_out_but_for_those_that_mean_something() -> None:
    core = Tokenizer(models.WordLevel({"4": 0, "5": 1}, unk_token="4"))
    core.add_special_tokens(["<s>", "[THINK]", "[/THINK]", "<|end|>"])
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    row = [2, 3, 0, 4, 5, 1]
    assert Texts(tokenizer)([row]) == ["[THINK]4[/THINK]5"]
    assert Texts(tokenizer, (), ("<|end|>",))([row]) == ["[THINK]4[/THINK]<|end|>5"]
    texts = Texts(tokenizer, (), ("<|end|>",))
    assert [texts.ended(row[:n]) for n in range(1, 7)] == [False] * 4 + [True, False]
    assert texts.cut("[THINK]4[/THINK]<|end|>5") == "[THINK]4[/THINK]"


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("What is 2+2?\n<think>\n", "<think>\n"),
        ("What is 2+2? <think>", "<think>"),
        ("Assistant:[THINK]", "[THINK]"),
        ("Assistant: <seed:think> \n", "<seed:think> \n"),
        ("model\n<|channel>thought\n", "<|channel>thought\n"),
        ("What is 2+2?\n<think>\n\n</think>\n\n", ""),
        ("Write <think> and </think>.\n", ""),
        ("Begin with <think>. What is 2+2?\n", ""),
        ("What is 2+2?", ""),
    ],
)
def test_a_prompt_that_ends_in_opened_thinking_is_known(prompt: str, mark: str) -> None:
    written = Completion((5,), (0.0,), "So 4.", True)
    for kind in ("bytes", "sentences"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert begun(tokenizer, ids, (written,))[0].text == f"{mark}So 4."
