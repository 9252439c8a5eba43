"""Seeded synthetic checkpoints in the original's file format and key names, small enough for any machine.

The weights mean nothing, but they behave: activations stay near one, the router has preferences, images and far-away
tokens change the next token, and greedy decoding neither stops at once nor repeats one token. Knows nothing of
PyTorch.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from longllava_trt.config import DecoderConfig, LongLLaVAConfig, VisionConfig
from longllava_trt.errors import InputError
from longllava_trt.publish import published
from longllava_trt.safetensors_index import INDEX_FILE
from longllava_trt.tensor_names import expected_tensors
from reference.synthetic_tokenizer import tokenizer_files
from reference.synthetic_weights import draw_tensor

__all__ = ["PRESETS", "write_checkpoint"]

Shapes = dict[str, tuple[int, ...]]

_TOWER = "vision_tower"
_DTYPES = {
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
_MAX_CONTEXT = 40960


def _preset(vision: VisionConfig, **decoder: int) -> LongLLaVAConfig:
    """Build a config with the published models' layer pattern; eight layers hold each kind of layer."""
    pattern = {
        "num_hidden_layers": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "vocab_size": 512,
    }
    return LongLLaVAConfig(
        vision=vision,
        decoder=DecoderConfig(**pattern, **decoder, rms_norm_eps=1e-6),
        tokenizer_model_max_length=_MAX_CONTEXT,
    )


_TINY_VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2
)
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 224,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 4,
}
PRESETS = {
    "tiny": _preset(_TINY_VISION, **_TINY, num_experts=4, num_experts_per_tok=2),
    "tiny-dense": _preset(_TINY_VISION, **_TINY, num_experts=1, num_experts_per_tok=1),
    "mini": _preset(
        VisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
        ),
        hidden_size=512,
        intermediate_size=1792,
        num_attention_heads=8,
        num_key_value_heads=2,
        mamba_dt_rank=32,
        num_experts=16,
        num_experts_per_tok=2,
    ),
}
"""`tiny`: a few megabytes, both mixers, dense and routed layers. `tiny-dense`: the same with one expert and no router,
as the 9B. `mini`: large enough to measure speed on a CPU."""


def write_checkpoint(
    folder: Path,
    *,
    preset: str,
    seed: int = 0,
    dtype: str = "float32",
    shard_bytes: int = 256 * 2**20,
    overwrite: bool = False,
) -> list[Path]:
    """Write a synthetic checkpoint; the folder appears whole or not at all.

    Args:
        folder: Where to; must not exist or be empty.
        preset: One of `PRESETS`.
        seed: Not negative. The same seed gives the same bytes.
        dtype: Of every tensor: float32, float16 or bfloat16.
        shard_bytes: Largest shard, unless one tensor is larger; there are always two shards or more.
        overwrite: Replace a checkpoint that is there already.

    Returns:
        The files written.

    Raises:
        InputError: If an argument is not one of these, or the folder is taken or cannot be written.
    """
    for name, value, allowed in (("preset", preset, PRESETS), ("dtype", dtype, _DTYPES)):
        if value not in allowed:
            raise InputError(f"synth: {name} must be one of {', '.join(allowed)}, got {value!r}")
    if seed < 0 or shard_bytes < 1:
        raise InputError(
            f"synth: seed must be >= 0 and shard_bytes >= 1, got {seed} and {shard_bytes}"
        )
    config = PRESETS[preset]
    with published(folder, overwrite=overwrite, marker=INDEX_FILE) as staging:
        texts = _json_files(config, dtype) | tokenizer_files(config.decoder.vocab_size)
        for name, text in texts.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8")
        _write_shards(staging, config, seed=seed, dtype=dtype, shard_bytes=shard_bytes)
        names = sorted(p.relative_to(staging) for p in staging.rglob("*") if p.is_file())
    return [folder / name for name in names]


def _write_shards(
    folder: Path, config: LongLLaVAConfig, *, seed: int, dtype: str, shard_bytes: int
) -> None:
    """Write shards and their index, one tensor in memory at a time."""
    shards = _plan_shards(config, _DTYPES[dtype][1].itemsize, shard_bytes)
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, seed=seed, dtype=dtype)
    total = sum(math.prod(shape) for shard in shards for shape in shard.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {
        "metadata": {"total_size": total * _DTYPES[dtype][1].itemsize},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX_FILE).write_text(_json(index), encoding="utf-8")


def _plan_shards(config: LongLLaVAConfig, itemsize: int, shard_bytes: int) -> list[Shapes]:
    """Deal the tensors out in the model's order, to at least two shards."""
    shapes = expected_tensors(config)
    total = itemsize * sum(map(math.prod, shapes.values()))
    limit = min(shard_bytes, math.ceil(total / 2))
    shards: list[Shapes] = [{}]
    room = limit
    for name, shape in shapes.items():
        nbytes = itemsize * math.prod(shape)
        if nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = shape
        room -= nbytes
    return shards


def _write_shard(path: Path, shapes: Shapes, *, seed: int, dtype: str) -> None:
    word, numpy_dtype = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + numpy_dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": word, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # the data starts at a multiple of 8, so that mapped tensors are aligned
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(draw_tensor(name, shape, seed=seed).astype(numpy_dtype).tobytes())


def _json_files(config: LongLLaVAConfig, dtype: str) -> dict[str, str]:
    """Return the texts of the JSON files that describe the model, by path inside the checkpoint."""
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    return {
        "config.json": _json(_model_config(config, dtype) | ids),
        "generation_config.json": _json(ids),
        "preprocessor_config.json": _json(_preprocessor_config(config.vision)),
        f"{_TOWER}/config.json": _json(_vision_config(config.vision)),
    }


def _model_config(config: LongLLaVAConfig, dtype: str) -> dict[str, Any]:
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
        "mm_vision_tower": _TOWER,
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


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
