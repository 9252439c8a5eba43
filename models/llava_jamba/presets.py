"""Sizes of synthetic checkpoints, small and published, and their config.json.

All have the published layer pattern; eight layers have each kind of layer.
"""

from __future__ import annotations

import json
from typing import Any

from longllava_trt.models.clip import clip_config, preprocessor_config
from longllava_trt.models.llava_jamba.config import MODEL_TYPE, model_from_keys
from longllava_trt.models.registry import CONFIG_FILE
from longllava_trt.models.spec import ModelSpec, VisionSpec
from longllava_trt.models.towers import published_tower

__all__ = ["PRESETS", "PUBLISHED", "compose", "config_files"]

_TOWER_FOLDER = "vision_tower"
_MAX_CONTEXT = 40960

_PUBLISHED_KEYS: dict[str, Any] = {
    "architectures": ["LlavaJambaForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "calc_logits_for_entire_prompt": False,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "mamba_conv_bias": True,
    "mamba_inner_layernorms": True,
    "mamba_proj_bias": False,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "model_type": MODEL_TYPE,
    "n_ctx": 262144,
    "output_router_logits": False,
    "pad_token_id": 0,
    "resamplePooling": "2d",
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "tokenizer_padding_side": "right",
    "transformers_version": "4.44.2",
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mamba_kernels": True,
    "use_mm_proj": True,
}
"""Keys of the published config.json that are the same in all sizes, ignored ones too."""

_PATTERN = {
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "rms_norm_eps": 1e-6,
}
_DENSE = {"num_experts": 1, "num_experts_per_tok": 1}
_ROUTED = {"num_experts": 16, "num_experts_per_tok": 2}
_TINY = {
    "num_hidden_layers": 8,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 224,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 4,
}
_MINI = {
    "num_hidden_layers": 8,
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 32,
}
_FULL = {
    "num_hidden_layers": 32,
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "mamba_dt_rank": 256,
}
_TINY_VISION = VisionSpec(hidden_size=32, intermediate_size=64, num_layers=4, num_heads=2)
_MINI_VISION = VisionSpec(hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4)


def compose(vision: VisionSpec, torch_dtype: str = "float32", /, **keys: Any) -> ModelSpec:
    """Make a model of any size, with all other keys of its config.json as published.

    Args:
        vision: The vision tower.
        torch_dtype: Dtype that its config.json names.
        **keys: Keys of config.json; those of the decoder's sizes have no defaults.
    """
    sizes = {"mm_hidden_size": vision.hidden_size, "tokenizer_model_max_length": _MAX_CONTEXT}
    tower = {"mm_vision_tower": published_tower(vision) or _TOWER_FOLDER}
    own = {"torch_dtype": torch_dtype, **keys}
    return model_from_keys({**_PUBLISHED_KEYS, **_PATTERN, **sizes, **tower, **own}, vision)


def config_files(spec: ModelSpec, dtype: str) -> dict[str, str]:
    """Return the texts of a checkpoint's JSON files by path.

    A published vision tower is only named, as in the published checkpoints.
    """
    ids = {key: spec.source[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    changed = {"torch_dtype": dtype, "num_hidden_layers": spec.decoder.num_layers}
    files: dict[str, dict[str, Any]] = {
        CONFIG_FILE: {**spec.source, **changed},
        "generation_config.json": ids,
    }
    vision = spec.require_vision()
    if published_tower(vision) is None:
        files["preprocessor_config.json"] = preprocessor_config(vision)
        files[f"{_TOWER_FOLDER}/{CONFIG_FILE}"] = clip_config(vision)
    return {name: json.dumps(v, indent=2, sort_keys=True) + "\n" for name, v in files.items()}


PRESETS = {
    "tiny": compose(_TINY_VISION, **_TINY, num_experts=4, num_experts_per_tok=2),
    "tiny-dense": compose(_TINY_VISION, **_TINY, **_DENSE),
    "mini": compose(_MINI_VISION, **_MINI, **_ROUTED),
    "9b": compose(VisionSpec(), "bfloat16", **_FULL, **_DENSE),
    "53b": compose(VisionSpec(), "bfloat16", **_FULL, **_ROUTED),
}
"""`tiny`: a few megabytes, both mixers, dense and routed layers. `tiny-dense`: the same with one
expert and no router, as the 9B. `mini`: large enough to measure speed on a CPU. `9b` and `53b`: the
published sizes."""

PUBLISHED = frozenset({"9b", "53b"})
"""Presets that are too large to be filled with random numbers by accident."""
