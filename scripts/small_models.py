"""A small random model of any architecture that `AutoModelForCausalLM` knows.

Sizes are put in by the names of a config's fields (`SIZES`); where a model of the usual size has
layers of several kinds, one of each is kept; `ODD` has what an architecture wants besides. The
vocabulary is that of the shipped tiny base, whose tokenizer lies beside the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 282
MANY = 24  # layers of the model that kinds of layers are looked for in
EIGHT = dict.fromkeys(
    (
        *("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "dim_head"),
        *("kv_channels", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"),
        *("mamba_d_state", "state_size", "ssm_state_size", "mamba_head_dim", "index_head_dim"),
        *("swa_head_dim", "kv_lora_rank", "o_lora_rank", "hidden_size_per_layer_input"),
        *("attention_head_size", "gated_norm_rank", "laurel_rank", "router_hidden_size"),
        *("global_head_dim", "indexer_head_dim", "adapter_rank", "rotary_dim", "d_rel"),
        *("conv_dim", "loop_gate_rank", "hc_lowrank", "chunk_size", "mamba_chunk_size"),
        *("block_size", "embed_dim_per_layer"),
    ),
    8,
)
SIZES: dict[str, Any] = {
    **EIGHT,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "n_vocab", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "embedding_dim", "hidden_size_global"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(
        (
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
            *("encoder_attention_heads", "num_decoder_attention_heads"),
            *("num_encoder_attention_heads", "swa_num_attention_heads", "mamba_n_heads"),
            *("linear_num_value_heads", "linear_num_heads", "indexer_n_heads", "mamba_num_heads"),
        ),
        4,
    ),
    **dict.fromkeys(
        (
            *("num_key_value_heads", "kv_n_heads", "linear_num_key_heads", "num_kv_heads"),
            *("swa_num_key_value_heads", "num_global_key_value_heads", "n_mamba_heads"),
            *("indexer_kv_heads", "o_groups", "hc_mult", "hc_count", "n_groups", "mamba_n_groups"),
        ),
        2,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"),
            *("dim_ff", "d_inner", "ffn_hidden_size", "feed_forward_size", "mlp_dim"),
            *("dense_intermediate_size", "prefix_dense_intermediate_size"),
        ),
        48,
    ),
    **dict.fromkeys(
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank"),
            *("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
            *("shared_intermediate_size", "shared_experts_intermediate_size", "block_multiple_of"),
        ),
        16,
    ),
    **dict.fromkeys(
        (
            *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
            *("index_topk", "zero_expert_num", "num_buckets", "rel_extent"),
        ),
        4,
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(
        (
            *("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "context_length"),
            *("max_sequence_length", "max_target_positions", "max_source_positions"),
        ),
        512,
    ),
    "index_n_heads": 64,  # few would give keys the same score, and which is chosen is chance
    "sliding_window": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "sep_token_id": 0,
    "cls_token_id": 0,
    "decoder_start_token_id": 0,
    "image_token_id": 2,
    "is_decoder": True,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SHARED = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
# What an architecture, or a part of one, wants besides.
ODD: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": SHARED},
    "gemma4_unified_assistant": {"text_config": SHARED},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "minicpm3": {"dim_model_base": 8},
    "moshi": {"audio_vocab_size": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 1,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "xmod": {"default_language": "en_XX"},
    "xlm": {"n_langs": 1, "causal": True},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def fields(cls: Any) -> set[str]:
    """The names that a config class can be given."""
    found = {name for base in cls.__mro__ for name in getattr(base, "__dataclass_fields__", {})}
    return found | set(getattr(cls, "attribute_map", {}))


def sizes(cls: Any, **changes: Any) -> dict[str, Any]:
    """Small sizes for a config class; its parts (text, vision) are made in the same way."""
    known = fields(cls)
    mapped = getattr(cls, "attribute_map", {})
    found = {name: size for name, size in SIZES.items() if name in known}
    found = {name: size for name, size in found.items() if mapped.get(name) not in found}
    if "kv_lora_rank" in known:  # latent attention has keys for every head
        found |= {"num_key_value_heads": 4} if "num_key_value_heads" in known else {}
    try:
        usual = cls() if getattr(cls, "sub_configs", {}) else None
    except Exception:  # noqa: BLE001  # of a part whose package is not there
        usual = None
    for name in getattr(cls, "sub_configs", {}):
        part = type(getattr(usual, name, None))
        if hasattr(part, "model_type"):
            given = sizes(part, **{**ODD.get(part.model_type, {}), **changes.get(name, {})})
            found[name] = {**given, **kinds_of_layers(part, given), "model_type": part.model_type}
    found |= {name: size for name, size in changes.items() if name not in found or name in SIZES}
    return {name: size for name, size in found.items() if name in changes or size is not None}


def kinds_of_layers(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of layer types that have every kind once, in the order of the usual model."""
    try:
        usual = cls(**{**given, "num_hidden_layers": MANY})
    except Exception:  # noqa: BLE001  # then it has the layers that it makes itself
        return {}
    lists = {
        name: value
        for name, value in vars(usual).items()
        if name.endswith(("types", "block_type")) and isinstance(value, list) and len(value) == MANY
    }
    if not lists:
        return {}
    rows = list(zip(*lists.values(), strict=True))
    first = [rows.index(row) for row in dict.fromkeys(rows)]
    chosen = sorted([*first, *range(MANY)][: max(2, len(first))][:6])
    if len(first) == 1:
        chosen = [0, 1]
    return {"num_hidden_layers": len(chosen)} | {
        name: [value[place] for place in chosen] for name, value in lists.items()
    }


def config_of(name: str) -> Any:
    """A small config of the architecture `name`."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[name]
    odd = ODD.get(name, {})
    given = sizes(cls, **odd)
    kinds = {n: v for n, v in kinds_of_layers(cls, given).items() if n not in odd}
    if any(name.endswith(("types", "block_type")) for name in odd):
        kinds = {}
    return cls(**{**given, **kinds})


def architectures() -> dict[str, str]:
    """The class of every architecture that `AutoModelForCausalLM` maps."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def model_of(name: str, seed: int = 0) -> Any:
    """A small random model, whose distributions are not uniform."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(name))
    with torch.no_grad():
        for tensor, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in tensor and parameter.is_floating_point():
                parameter.normal_(0.0, 0.2)
    return model.eval()


def save(name: str, folder: Path, seed: int = 0) -> None:
    """Write a small model of the architecture beside the tiny base's tokenizer."""
    from transformers import AutoTokenizer

    from modicum.models.load import TINY

    model_of(name, seed).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
