"""The JSON files that describe a synthetic checkpoint, with every key of the published ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from longllava_trt.models.llava_jamba.config import LongLLaVAConfig, VisionConfig

__all__ = ["config_files"]

_TOWER_FOLDER = "vision_tower"
_PUBLISHED_TOWER = "openai/clip-vit-large-patch14-336"


def config_files(config: LongLLaVAConfig, dtype: str) -> dict[str, str]:
    """Return the files' texts by path inside the checkpoint.

    A model with the published vision tower names it and describes it no further, as the published checkpoints do.
    """
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    own_tower = config.vision != VisionConfig()
    tower = _TOWER_FOLDER if own_tower else _PUBLISHED_TOWER
    files = {
        "config.json": _model_config(config, dtype, tower) | ids,
        "generation_config.json": ids,
    }
    if own_tower:
        files["preprocessor_config.json"] = _preprocessor_config(config.vision)
        files[f"{_TOWER_FOLDER}/config.json"] = _vision_config(config.vision)
    return {name: json.dumps(v, indent=2, sort_keys=True) + "\n" for name, v in files.items()}


def _model_config(config: LongLLaVAConfig, dtype: str, tower: str) -> dict[str, Any]:
    """Return every key of the published config.json, also those that inference ignores."""
    return asdict(config.decoder) | {
        "architectures": ["LlavaJambaForCausalLM"],
        "attention_dropout": 0.0,
        "calc_logits_for_entire_prompt": False,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "mamba_conv_bias": True,
        "mamba_inner_layernorms": True,
        "mamba_proj_bias": False,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "model_type": "llava_jamba",
        "n_ctx": 262144,
        "output_router_logits": False,
        "resamplePooling": "2d",
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": config.tokenizer_model_max_length,
        "tokenizer_padding_side": "right",
        "torch_dtype": dtype,
        "transformers_version": "4.44.2",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mamba_kernels": True,
        "use_mm_proj": True,
    }


def _vision_config(vision: VisionConfig) -> dict[str, Any]:
    return asdict(vision) | {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
        "num_channels": 3,
    }


def _preprocessor_config(vision: VisionConfig) -> dict[str, Any]:
    return {
        "crop_size": vision.image_size,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": vision.image_size,
    }
