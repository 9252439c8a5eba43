"""Sizes of synthetic Jamba checkpoints, and their JSON files."""

from __future__ import annotations

import json
from typing import Any

from longllava_trt.models.jamba.config import MODEL_TYPE, model_from_keys
from longllava_trt.models.registry import CONFIG_FILE
from longllava_trt.models.spec import ModelSpec

__all__ = ["PRESETS", "PUBLISHED", "compose", "config_files"]

_SAME: dict[str, Any] = {
    "architectures": ["JambaForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_proj_bias": False,
    "max_position_embeddings": 262144,
    "model_type": MODEL_TYPE,
    "num_logits_to_keep": 1,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_mamba_kernels": True,
}
_TINY = {
    "attn_layer_offset": 4,
    "attn_layer_period": 8,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "hidden_size": 64,
    "intermediate_size": 224,
    "mamba_dt_rank": 4,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
_3B = {
    "attn_layer_offset": 7,
    "attn_layer_period": 14,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "mamba_dt_rank": 160,
    "num_attention_heads": 20,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 28,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "vocab_size": 65536,
}


def compose(torch_dtype: str = "float32", /, **keys: Any) -> ModelSpec:
    """Make a model of any size, with all other keys of its config.json as published."""
    return model_from_keys({**_SAME, "torch_dtype": torch_dtype, **keys})


def config_files(spec: ModelSpec, dtype: str) -> dict[str, str]:
    """Return the texts of a checkpoint's JSON files by path."""
    ids = {key: spec.source[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    changed = {"torch_dtype": dtype, "num_hidden_layers": spec.decoder.num_layers}
    files = {CONFIG_FILE: {**spec.source, **changed}, "generation_config.json": ids}
    return {name: json.dumps(v, indent=2, sort_keys=True) + "\n" for name, v in files.items()}


PRESETS = {
    "jamba-tiny": compose(**_TINY),
    "jamba-3b": compose("bfloat16", **_3B),
}
"""`jamba-tiny`: both mixers, dense and routed layers. `jamba-3b`: 26 Mamba and 2 attention layers,
dense, the head tied to the embeddings."""

PUBLISHED = frozenset({"jamba-3b"})
"""Presets that are too large to be filled with random numbers by accident."""
