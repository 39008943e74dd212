"""Dense selections that came later: strides, blocks, ends as options, biases."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import FAMILIES, random_model
from modicum import spec, updates
from modicum.types import UserError
from modicum.updates.dense import split
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


def test_biases_train_alone_and_faster() -> None:
    model = random_model("qwen2")
    update = updates.parse("bitfit")
    wanted = {f"model.layers.{n}.self_attn.{m}_proj.bias" for n in range(3) for m in "qkv"}
    assert set(update.apply(model).trainable) == wanted
    assert update.rate_scale == 10
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
