"""The tiny base model's tokenizer: byte-level BPE, digits and signs apart, tags whole.

Every text can be written and decodes to itself. A word of the corpus is one token, and so
is each of the four answer tags; numbers are spelled digit by digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence
from transformers import PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END, PAD = "<|endoftext|>", "<|pad|>"
# The base was pretrained on a question, a newline and the answer. That is its chat: what
# the prompt's style asks for comes after an empty line and would mean nothing to it.
CHAT = r"{{ messages[-1]['content'].split('\n\n')[0] + '\n' }}"


def build(texts: Iterable[str], size: int = 278) -> PreTrainedTokenizerFast:
    """A tokenizer trained on `texts`: 256 bytes, two special tokens, the words, the tags."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), Punctuation("isolated"), ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = (re.sub("|".join(TAGS), "", text) for text in texts)
    core.train_from_iterator(plain, trainer)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=CHAT,
    )
