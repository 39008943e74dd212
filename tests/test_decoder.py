"""The split forward: equal to the library's own, for every family that it claims."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from modicum.models.attention import Packed
from modicum.models.cache import Cache
from modicum.models.decoder import FAMILIES, Decoder, view
from modicum.models.linear import few_rows, linear_layers

CPU = torch.device("cpu")
WINDOW = 5
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
EXPERTS = {
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
}
SCALES = {"embedding_multiplier": 3.0, "logits_scaling": 4.0}
HYBRID = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
# What is a Llama to us: all that sets it apart lies within the layers.
ALIKE = (
    *("gemma", "seed_oss", "arcee", "helium", "glm", "glm4", "nemotron", "apertus", "ernie4_5"),
    *("ministral", "ministral3", "exaone4", "starcoder2", "mixtral", "qwen3_moe", "glm4_moe"),
    *("stablelm", "olmo", "hunyuan", "granitemoe", "granitemoeshared", "hyperclovax"),
)
# Each family with what sets it apart; the name is that of the test.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama biases tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama one key head": ("llama", {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding": ("qwen2", {"use_sliding_window": True, **SLIDING}),
    "qwen3": ("qwen3", {"num_key_value_heads": 4}),
    "mistral sliding": ("mistral", {"sliding_window": WINDOW}),
    "mistral": ("mistral", {"sliding_window": None}),
    "gemma2": (
        "gemma2",
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5, **SLIDING},
    ),
    "gemma3": ("gemma3_text", SLIDING),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "phi3 sliding": ("phi3", {"sliding_window": WINDOW}),
    "gemma4": (
        "gemma4_text",
        {"hidden_size_per_layer_input": 0, "global_head_dim": 16, "attention_k_eq_v": True}
        | {"num_global_key_value_heads": 1, "final_logit_softcapping": 1.5, **SLIDING},
    ),
    "gemma4 experts": (
        "gemma4_text",
        {"hidden_size_per_layer_input": 0, "enable_moe_block": True, "top_k_experts": 2}
        | {**EXPERTS, **SLIDING},
    ),
    "granite": ("granite", SCALES | {"residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "granitemoe": ("granitemoe", SCALES | EXPERTS),
    "granitemoeshared": ("granitemoeshared", SCALES | EXPERTS | {"shared_intermediate_size": 24}),
    "hyperclovax": ("hyperclovax", SCALES | {"residual_multiplier": 0.5}),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("cohere2", {"logit_scale": 0.25, **SLIDING}),
    "qwen3_5": ("qwen3_5_text", HYBRID),
    "qwen3_5_moe": ("qwen3_5_moe_text", HYBRID | EXPERTS),
    "qwen3_next": ("qwen3_next", HYBRID | EXPERTS),
    "olmo3": ("olmo3", SLIDING),
    "ministral": ("ministral", SLIDING),
    "ministral3": ("ministral3", {"sliding_window": WINDOW}),
    "exaone4": ("exaone4", SLIDING),
    "vaultgemma": ("vaultgemma", {"attn_logit_softcapping": 2.0, **SLIDING}),
    "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", {"sliding_window": WINDOW, **EXPERTS}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"use_sliding_window": True, "sliding_window": WINDOW}),
    "glm4_moe": ("glm4_moe", EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1}),
    "stablelm": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "olmo": ("olmo", {"clip_qkv": 1.0}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    **{name: (name, {}) for name in ALIKE[:9]},
}
# Their gradients are large where experts or states are: rounding shows more.
SHARP = ("gemma4 experts", "qwen3_5_moe", "qwen3_next", "apertus")
# Rounding is looked at where something is ours; elsewhere the layers are the library's alone.
ROUNDED = [name for name in VARIANTS if name not in ALIKE]
PROMPTS = [torch.arange(3, 3 + n) for n in (7, 4, 9)]
# (prompt, length): some rows share a prompt, one is empty, one passes every window.
ROWS = [(0, 5), (0, 3), (2, 12), (1, 0)]


@cache
def model_of(variant: str, dtype: torch.dtype = torch.float32) -> Any:
    family, changes = VARIANTS[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**SIZES, **changes})
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(parameter + 0.1 * noise if "norm" in name else 0.2 * noise)
    return model.to(dtype)


def decoder_of(model: Any) -> Decoder:
    found = view(model)
    assert found is not None
    return found


def sequences() -> tuple[list[Tensor], Tensor]:
    """The rows' tokens, and all tokens laid end to end, prompts first."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 60, (length,), generator=draw) for _, length in ROWS]
    return rows, torch.cat([*PROMPTS, *rows])


def packed() -> Packed:
    return Packed([len(p) for p in PROMPTS], [p for p, _ in ROWS], [n for _, n in ROWS], CPU)


def library_logits(model: Any) -> Tensor:
    """The library's logits of the same tokens in the same order."""
    rows, _ = sequences()
    found = [model(input_ids=prompt[None]).logits[0] for prompt in PROMPTS]
    for (prompt, _), row in zip(ROWS, rows, strict=True):
        whole = torch.cat([PROMPTS[prompt], row])
        found.append(model(input_ids=whole[None]).logits[0, len(PROMPTS[prompt]) :])
    return torch.cat(found)


def split_logits(decoder: Decoder, recompute: bool = False) -> Tensor:
    """Ours, in two stretches of layers."""
    _, ids = sequences()
    plan = packed()
    hidden = decoder.run(decoder.embed(ids), plan, 0, 2)
    hidden = decoder.run(hidden, plan, 2, recompute=recompute)
    return decoder.logits(decoder.finish(hidden))


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum in which every logit has a weight of its own."""
    model.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits.float() * weights).sum().backward()
    made = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return made


def far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative distance of a gradient."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[n].double() - g.double()).norm() / g.double().norm())
        for n, g in wanted.items()
    )


def test_every_family_has_a_variant() -> None:
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_the_librarys(variant: str) -> None:
    model = model_of(variant)
    wanted, found = library_logits(model), split_logits(decoder_of(model))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    limit = 1e-4 if variant in SHARP else 2e-5
    assert far(gradients(model, found), gradients(model, wanted)) < limit


@pytest.mark.parametrize("variant", ROUNDED)
def test_bf16_is_as_near_as_the_library_is(variant: str) -> None:
    """Against fp32, the split forward in bf16 errs no more than the library's does."""
    exact_model, model = model_of(variant), model_of(variant, torch.bfloat16)
    exact = library_logits(exact_model)
    wanted, found = library_logits(model), split_logits(decoder_of(model))
    assert found.dtype == torch.bfloat16
    allowed = (wanted - exact).abs().mean()
    assert (found - exact).abs().mean() < 1.5 * allowed
    true = gradients(exact_model, exact)
    theirs, ours = gradients(model, wanted), gradients(model, found)
    assert far(ours, true) < 1.5 * far(theirs, true)


@pytest.mark.parametrize("variant", ["llama untied", "gemma2", "gemma3"])
def test_recomputing_layers_changes_nothing(variant: str) -> None:
    model = model_of(variant)
    kept, again = (split_logits(decoder_of(model), recompute) for recompute in (False, True))
    assert torch.equal(kept, again)
    assert far(gradients(model, again), gradients(model, kept)) < 1e-6


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [(name, dtype) for name in ROUNDED for dtype in (torch.float32, torch.bfloat16)]
    + [pytest.param(name, torch.float32, marks=pytest.mark.slow) for name in ALIKE],
)
def test_decoding_gives_the_whole_forward(variant: str, dtype: torch.dtype) -> None:
    """Rows of three prompts, decoded together; some leave, which moves the others about."""
    model = model_of(variant, dtype)
    decoder, size, steps = decoder_of(model), 3, 9
    lengths = [len(prompt) for prompt in PROMPTS]
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 60, (len(PROMPTS) * size, steps), generator=draw)
    leave = {2: [3, 7], 3: [1, 2, 4, 8], 6: [5]}
    with torch.inference_mode():
        wanted = [
            model(input_ids=torch.cat([PROMPTS[b // size], row])[None]).logits[0]
            for b, row in enumerate(tokens)
        ]
        cache = Cache(lengths, size, steps, CPU)
        plan = Packed(lengths, [], [], CPU, cache)
        decoder.run(decoder.embed(torch.cat(PROMPTS)), plan)
        living = torch.arange(len(tokens))
        errors = []
        for step in range(steps):
            if step in leave:
                stay = [i for i, b in enumerate(living.tolist()) if b not in leave[step]]
                cache.keep(stay)
                living = living[stay]
            cache.advance()
            with few_rows(decoder.linears, len(living)):
                hidden = decoder.embed(tokens[living, step])
                hidden = decoder.run(hidden, cache)
                logits = decoder.logits(decoder.finish(hidden))
            for row, b in zip(logits, living.tolist(), strict=True):
                errors.append((row - wanted[b][lengths[b // size] + step]).abs())
    error = torch.stack(errors)
    if dtype == torch.float32:
        assert error.max() < 3e-5
    else:
        assert error.mean() < 0.05 * torch.cat(wanted).abs().mean() + 0.01


def test_a_cache_shrinks_when_rows_have_left() -> None:
    model = model_of("llama untied")
    decoder = decoder_of(model)
    with torch.inference_mode():
        cache = Cache([7, 4, 9], 4, 6, CPU)
        plan = Packed([7, 4, 9], [], [], CPU, cache)
        decoder.run(decoder.embed(torch.cat(PROMPTS)), plan)
        before = cache.rows[0][0].numel()
        cache.advance()
        decoder.run(decoder.embed(torch.arange(1, 13)), cache)
        cache.keep([0, 3, 9])
    assert cache.rows[0][0].numel() == before // 3
    assert len(cache.prompts[0][0]) == 2
    assert cache.positions_N.tolist() == [7, 7, 9]


def test_prompts_are_stored_once_for_their_group() -> None:
    decoder = decoder_of(model_of("llama untied"))
    with torch.inference_mode():
        cache = Cache([7, 4, 9], 16, 6, CPU)
        plan = Packed([7, 4, 9], [], [], CPU, cache)
        decoder.run(decoder.embed(torch.cat(PROMPTS)), plan)
    assert cache.prompts[0][0].shape == (3, 2, 9, 8)
    assert cache.rows[0][0].shape == (3, 2, 16, 6, 8)


def test_the_models_own_attention_comes_back() -> None:
    model = model_of("gemma2")
    before = model.config._attn_implementation
    decoder = decoder_of(model)
    split_logits(decoder)
    assert model.config._attn_implementation == before
    with pytest.raises(AttributeError):
        decoder.run(torch.zeros(3, 32), SimpleNamespace(positions_N=torch.arange(3)))
    assert model.config._attn_implementation == before


def test_an_unknown_family_has_no_view() -> None:
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=40)
    assert view(AutoModelForCausalLM.from_config(config)) is None


@pytest.mark.parametrize("bias", [False, True])
def test_weight_first_is_the_layer(bias: bool) -> None:
    layers = nn.ModuleList([nn.Linear(24, 40, bias=bias), nn.Linear(40, 24, bias=bias)])
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    wanted = layers[1](layers[0](x))
    with torch.no_grad(), few_rows(linear_layers(layers), 10):
        found = layers[1](layers[0](x))
        assert "forward" in layers[0].__dict__
    assert "forward" not in layers[0].__dict__
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layers[0](x), F.linear(x, layers[0].weight, layers[0].bias))


def test_many_rows_are_run_as_they_are() -> None:
    layers = [nn.Linear(4, 4)]
    with few_rows(layers, 1000):
        assert "forward" not in layers[0].__dict__


@pytest.mark.parametrize(
    "changes", [{"hidden_size_per_layer_input": 8}, {"num_kv_shared_layers": 2}]
)
def test_a_gemma4_that_hands_things_past_layers_has_no_view(changes: dict[str, int]) -> None:
    """Its inputs of each layer, and keys that later layers share, are not in the states."""
    small = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 60}
    config = AutoConfig.for_model("gemma4_text", **{**SIZES, **SLIDING, **small, **changes})
    with torch.device("meta"):
        assert view(AutoModelForCausalLM.from_config(config)) is None


def test_a_state_goes_on_from_its_prompt() -> None:
    """A prompt of 300 tokens, more than one chunk of the delta rule, and rows of 1 and 70."""
    model = model_of("qwen3_5")
    decoder = decoder_of(model)
    draw = torch.Generator().manual_seed(3)
    prompt, short, long = (torch.randint(1, 60, (n,), generator=draw) for n in (300, 1, 70))
    plan = Packed([300, 5], [0, 0, 1], [1, 70, 1], CPU)
    ids = torch.cat([prompt, prompt[:5], short, long, short])
    with torch.no_grad():
        hidden = decoder.run(decoder.embed(ids), plan)
        found = decoder.logits(decoder.finish(hidden))[305:]
        whole = [
            torch.cat(parts) for parts in ((prompt, short), (prompt, long), (prompt[:5], short))
        ]
        wanted = [model(input_ids=ids[None]).logits[0] for ids in whole]
    wanted = torch.cat([wanted[0][300:], wanted[1][300:], wanted[2][5:]])
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=1e-4)
