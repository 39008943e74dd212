"""Dense selections that came later: strides, blocks, ends as options, biases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import FAMILIES, random_model
from modicum import spec, updates
from modicum.types import UserError
from modicum.updates.dense import split
from modicum.updates.layout import depth, layer_of, layout
from modicum.updates.preview import preview

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def layers(model: object, *numbers: int) -> set[str]:
    """The names of the tensors of these layers."""
    return {
        name
        for name, _ in model.named_parameters()  # type: ignore[attr-defined]
        if any(name.startswith(f"model.layers.{n}.") for n in numbers)
    }


def test_near_equal_blocks() -> None:
    """Together they are everything, in order, and sizes differ by one at most."""
    assert [list(part) for part in split(7, 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [list(part) for part in split(6, 3)] == [[0, 1], [2, 3], [4, 5]]
    for count in range(1, 12):
        for of in range(1, count + 1):
            parts = split(count, of)
            assert [i for part in parts for i in part] == list(range(count))
            sizes = {len(part) for part in parts}
            assert len(parts) == of and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_strides_blocks_and_ends_by_hand(family: str) -> None:
    """Five layers: 0 1 2 3 4; as three blocks 0, 1 2, 3 4."""
    model = random_model(family, layers=5)
    head = HEAD if family == "llama" else EMBEDDING
    expected = {
        "every(2)": layers(model, 0, 2, 4),
        "every(2, offset=1)": layers(model, 1, 3),
        "every(3, offset=4)": layers(model, 4),
        "every(1)": layers(model, 0, 1, 2, 3, 4),
        "every(9, embedding=True)": layers(model, 0) | {EMBEDDING},
        "surgical(0)": layers(model, 0),
        "surgical(1)": layers(model, 1, 2),
        "surgical(2, norm=True)": layers(model, 3, 4) | {NORM},
        "surgical(0, of=1)": layers(model, 0, 1, 2, 3, 4),
        "surgical(3, of=5)": layers(model, 3),
        "last(1, norm=True, head=True)": layers(model, 4) | {NORM, head},
        "first(1, embedding=True)": layers(model, 0) | {EMBEDDING},
        "middle(1, norm=True)": layers(model, 2) | {NORM},
        "layers(0, -1, head=True)": layers(model, 0, 4) | {head},
        "layers(1, embedding=True, norm=True, head=True) & parts(norm)": {
            NORM,
            *(name for name in layers(model, 1) if "norm" in name),
        },
    }
    for text, names in expected.items():
        made = updates.parse(text)
        assert str(made) == text
        assert set(made.apply(model).trainable) == names, text


def test_the_norm_of_an_option_is_the_final_one() -> None:
    """The norms inside of layers that are not selected stay frozen."""
    model = random_model("qwen3")
    trained = updates.parse("last(1, norm=True)").apply(model).trainable
    assert {name for name in trained if "layers.2" not in name} == {NORM}


def test_options_come_after_what_says_where() -> None:
    signatures = {
        name: spec.describe(updates.UPDATES[name])["signature"]
        for name in ("last", "every", "layers", "surgical")
    }
    ends = "embedding=False, norm=False, head=False"
    assert signatures == {
        "last": f"last(k, {ends})",
        "every": f"every(stride, offset=0, {ends})",
        "layers": f"layers(indices, ..., {ends})",
        "surgical": f"surgical(block, of=3, {ends})",
    }


def test_a_tied_head_reaches_the_bottom_and_says_so(folders: dict[str, Path]) -> None:
    text = "last(1, head=True)"
    model = random_model("qwen2")
    prepared = updates.parse(text).apply(model)
    assert prepared.trainable[EMBEDDING] is model.get_output_embeddings().weight
    assert prepared.lowest_layer == -1
    assert "one tensor" in prepared.notes[0] and "whole model" in prepared.notes[0]
    untied = updates.parse(text).apply(random_model("llama"))
    assert untied.lowest_layer == 2 and untied.notes == []
    assert updates.parse("last(1, norm=True)").apply(random_model("qwen2")).notes == []
    tied, bare = [preview(updates.parse(t), str(folders["qwen2"])) for t in (text, "last(1)")]
    assert tied.lowest_layer is None and tied.backward_share > 1.5 * bare.backward_share


def test_biases_train_alone() -> None:
    model = random_model("qwen2")
    update = updates.parse("bitfit")
    wanted = {f"model.layers.{n}.self_attn.{m}_proj.bias" for n in range(3) for m in "qkv"}
    assert set(update.apply(model).trainable) == wanted
    both = updates.parse("bitfit & last(1)").apply(model).trainable
    assert set(both) == {name for name in wanted if "layers.2" in name}


@pytest.mark.parametrize(
    "text, words",
    [
        ("bitfit", r"bitfit: this model has no bias to train; parts\(norm\)"),
        ("last(1) + bitfit", "no bias"),
        ("every(0)", "stride must be at least 1"),
        ("every(2, offset=-1)", "offset must be at least 0"),
        ("every(2, offset=3)", "no layer 3; they are 0 to 2"),
        ("surgical(3)", "block must be between 0 and 2"),
        ("surgical(-1)", "block must be between 0 and 2"),
        ("surgical(0, of=4)", "only 3 layers to split"),
        ("surgical(0, of=0)", "of must be at least 1"),
        ("every", "needs 'stride'; it takes stride, offset=0"),
        ("last(1, heads=True)", "no argument 'heads'; it takes k, embedding=False"),
        ("last(1, norm=1)", "norm must be true or false"),
        ("last(4, norm=True)", "only 3 layers"),
        ("layers(norm=True)", r"layers\(2, 3\)"),
    ],
)
def test_what_cannot_be_selected_is_a_user_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model("llama"))


# Architectures with other names ----------------------------------------------------------

SMALL = {
    **{"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    **{"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "intermediate_size": 24},
    **{"ffn_dim": 24, "word_embed_proj_dim": 16, "state_size": 4, "attention_hidden_size": 16},
    **{"max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    **{"lru_width": 16, "attention_window_size": 8, "head_dim": 8, "num_key_value_heads": 1},
}
# What last(1), parts(attention), parts(mlp) and parts(norm) select: a name or a part of it each.
ODD = {
    "gpt2": ("transformer.h.2.", "h.0.attn.c_attn", "h.1.mlp.c_fc", "h.1.ln_1"),
    "bloom": ("transformer.h.2.", "self_attention.dense", "mlp.dense_h_to_4h", "input_layernorm"),
    "gpt_neox": ("layers.2.", "attention.query_key_value", "mlp.dense_4h_to_h", "final_layer_norm"),
    "opt": ("decoder.layers.2.", "self_attn.k_proj", "layers.0.fc1", "self_attn_layer_norm"),
    "mamba": ("backbone.layers.2.", "mixer.in_proj", None, "backbone.norm_f"),
    "rwkv": ("rwkv.blocks.2.", "attention.key", "feed_forward.value", "blocks.0.ln1"),
    "recurrent_gemma": ("layers.2.", "temporal_block.linear_x", "mlp_block", "channel_pre_norm"),
    "qwen3_5_text": ("layers.2.", "linear_attn.in_proj_qkv", "mlp.up_proj", "linear_attn.norm"),
}


@pytest.mark.parametrize("family", ODD)
def test_layers_and_parts_are_found_by_whatever_name(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL))

    def names(text: str) -> set[str]:
        return set(updates.parse(text).apply(model).trainable)  # type: ignore[attr-defined]

    top, attention, mlp, norm = ODD[family]
    last = names("last(1)")
    assert last and all(top in name for name in last)
    assert last | names("first(2)") == {n for n in names("full") if layer_of(n) is not None}
    found = {"attention": names("parts(attention)"), "norm": names("parts(norm)")}
    assert any(attention in n for n in found["attention"])
    assert any(norm in n for n in found["norm"])
    assert not any("layer_norm." in n or "layernorm." in n for n in found["attention"])
    if mlp is None:
        with pytest.raises(UserError, match="selects nothing in this model"):
            names("parts(mlp)")
    else:
        assert any(mlp in n for n in names("parts(mlp)"))
        assert not names("parts(mlp)") & found["attention"]
    outside = {
        n for n, p in layout(model).places.items() if p.layer is None and "norm" not in p.parts
    }
    ends = [n for n in outside if depth(n, 3) < 0]
    assert len(ends) == (2 if family in ("gpt2", "opt") else 1)


def test_other_stacks_than_the_texts_are_no_layers() -> None:
    assert layer_of("model.language_model.layers.3.mlp.up_proj.weight") == 3
    assert layer_of("model.vision_tower.encoder.layers.3.mlp.fc1.weight") is None
    assert layer_of("model.audio_tower.layers.0.self_attn.q_proj.weight") is None


def test_random_layers_are_drawn_by_the_seed() -> None:
    def drawn(text: str, seed: int) -> set[str]:
        return set(updates.parse(text).apply(random_model("llama"), seed).trainable)

    model = random_model("llama")
    seen = {frozenset(drawn("layers(random, 1)", seed)) for seed in range(12)}
    assert seen == {frozenset(layers(model, n)) for n in range(3)}
    assert drawn("layers(random, 2)", 5) == drawn("layers(random, 2)", 5)
    assert drawn("layers(random, 1)", 5) < drawn("layers(random, 2)", 5)
    assert drawn("layers(random, 3)", 5) == layers(model, 0, 1, 2)
    inside = updates.parse("lora(rank=2) @ (layers(random, 1) & parts(mlp))").apply(model, 5)
    (number,) = {name.split("layers.")[1][0] for name in inside.trainable}
    assert inside.drawn == f"layers({number}) & parts(mlp)"
    assert inside.notes[0] == f"the run's seed has drawn {inside.drawn}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers(random)", "it takes one number"),
        ("layers(random, 0)", "it takes one number"),
        ("layers(2, random)", "it takes one number"),
        ("layers(random, 1, 2)", "it takes one number"),
        ("layers(rand, 2)", "a whole number or 'random', not 'rand'"),
        ("layers(random, 4)", "the model has only 3 layers"),
    ],
)
def test_what_cannot_be_drawn(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        updates.parse(text).apply(random_model("llama"))
