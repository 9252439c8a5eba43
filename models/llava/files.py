"""A LLaVA's JSON files, written in either format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import IMAGE_PLACEHOLDER
from longllava_trt.models.clip import clip_config, preprocessor_config
from longllava_trt.models.family import StoredTensor
from longllava_trt.models.llava.weights import huggingface_name, original_name, tensor_name
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.models.registry import CONFIG_FILE
from longllava_trt.models.spec import AttentionSpec, DecoderSpec, ModelSpec, RotarySpec
from longllava_trt.models.towers import published_tower

__all__ = [
    "huggingface_files",
    "huggingface_tensors",
    "huggingface_tokens",
    "original_config",
    "original_files",
    "original_tensors",
    "original_tokens",
]

_TOWER_FOLDER = "vision_tower"
_MARKERS = ("<im_patch>", "<im_start>", "<im_end>")


def original_files(spec: ModelSpec, dtype: str) -> dict[str, str]:
    """Return the texts of the original's files by path; a published tower is only named."""
    vision = spec.require_vision()
    files: dict[str, dict[str, Any]] = {
        CONFIG_FILE: original_config(spec, dtype),
        "generation_config.json": _ids(spec),
        "preprocessor_config.json": preprocessor_config(vision),
    }
    if published_tower(vision) is None:
        files[f"{_TOWER_FOLDER}/{CONFIG_FILE}"] = clip_config(vision)
    return _texts(files)


def original_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Return the content of the original's config.json; the tower is in the shards."""
    vision, connector, images = spec.require_vision(), spec.require_connector(), spec.images
    config = _decoder(spec.decoder) | _ids(spec) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "image_aspect_ratio": images.aspect_ratio,
        "max_position_embeddings": spec.max_positions,
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": images.merge,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": images.use_start_end,
        "mm_vision_select_feature": "cls_patch" if vision.keep_class_token else "patch",
        "mm_vision_select_layer": vision.feature_layers[0],
        "mm_vision_tower": published_tower(vision) or _TOWER_FOLDER,
        "model_type": "llava_mistral" if "Mistral" in spec.title else "llava_llama",
        "torch_dtype": dtype,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
    }  # fmt: skip
    if connector.num_layers > 1:
        config["mm_projector_type"] = f"mlp{connector.num_layers}x_gelu"
    if images.pinpoints:
        config["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in images.pinpoints]
    if "Mistral" in spec.title:
        config |= {"architectures": ["LlavaMistralForCausalLM"], "sliding_window": None}
    return config


def huggingface_files(spec: ModelSpec, dtype: str) -> dict[str, str]:
    """Return the texts of transformers' files by path.

    Raises:
        InputError: If the model has something that transformers' format cannot say.
    """
    vision, connector, images = spec.require_vision(), spec.require_connector(), spec.images
    if connector.num_layers != 2 or images.use_start_end:
        raise InputError(
            f"synth: {spec.title} has a linear projector or image markers, which transformers' format cannot say; "
            "use --format original"
        )
    is_next, is_mistral = images.aspect_ratio == "anyres", "Mistral" in spec.title
    text = _decoder(spec.decoder) | {
        "max_position_embeddings": spec.max_positions,
        "model_type": "mistral" if is_mistral else "llama",
    }
    if is_mistral:
        text["sliding_window"] = None
    layers = list(vision.feature_layers)
    strategy = "full" if vision.keep_class_token else "default"
    config = _ids(spec) | {
        "architectures": [
            "LlavaNextForConditionalGeneration" if is_next else "LlavaForConditionalGeneration"
        ],
        "image_token_index": _image_token(spec),
        "model_type": "llava_next" if is_next else "llava",
        "multimodal_projector_bias": connector.bias,
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": spec.decoder.tie_embeddings,
        "torch_dtype": dtype,
        "vision_config": clip_config(vision),
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": strategy,
    }
    preprocessor = preprocessor_config(vision)
    if is_next:
        config["image_grid_pinpoints"] = [[h, w] for w, h in images.pinpoints]
        preprocessor |= {
            "image_grid_pinpoints": config["image_grid_pinpoints"],
            "image_processor_type": "LlavaNextImageProcessor",
        }
    processor = {
        "image_token": IMAGE_PLACEHOLDER,
        "num_additional_image_tokens": 1,
        "patch_size": vision.patch_size,
        "processor_class": "LlavaNextProcessor" if is_next else "LlavaProcessor",
        "vision_feature_select_strategy": strategy,
    }
    return _texts(
        {
            CONFIG_FILE: config,
            "generation_config.json": _ids(spec),
            "preprocessor_config.json": preprocessor,
            "processor_config.json": processor,
        }
    )


def original_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Return the tensors of the original's files by key."""
    is_linear = spec.require_connector().num_layers == 1
    return {
        original_name(tensor_name(path), is_linear=is_linear): StoredTensor((path,), shape)
        for path, shape in parameter_shapes(spec).items()
    }


def huggingface_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Return the tensors of transformers' published files by key."""
    return {
        huggingface_name(tensor_name(path)): StoredTensor((path,), shape)
        for path, shape in parameter_shapes(spec).items()
    }


def original_tokens(spec: ModelSpec) -> dict[str, int]:
    """Return the markers that some models of the original have: the last ids."""
    if not spec.images.use_start_end:
        return {}
    first = spec.decoder.vocab_size - len(_MARKERS)
    return {token: first + i for i, token in enumerate(_MARKERS)}


def huggingface_tokens(spec: ModelSpec) -> dict[str, int]:
    """Return the token that stands for an image."""
    return {IMAGE_PLACEHOLDER: _image_token(spec)}


def _image_token(spec: ModelSpec) -> int:
    """Return the model's own id for an image; or the last one, which no text gives."""
    own = spec.images.token_id
    return spec.decoder.vocab_size - 1 if own is None else own


def _decoder(decoder: DecoderSpec) -> dict[str, Any]:
    """Return Llama's keys; all layers are alike."""
    layer = decoder.layers[0]
    attention = layer.mixer
    assert isinstance(attention, AttentionSpec), "Bug: the decoder has attention layers alone"
    assert attention.rotary is not None, "Bug: the decoder has rotary positions"
    return {
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "head_dim": attention.head_dim,
        "intermediate_size": layer.feed_forward.intermediate_size,
        "num_attention_heads": attention.num_heads,
        "num_hidden_layers": decoder.num_layers,
        "num_key_value_heads": attention.num_kv_heads,
        "rms_norm_eps": decoder.rms_norm_eps,
        "tie_word_embeddings": decoder.tie_embeddings,
        "vocab_size": decoder.vocab_size,
        **_rotary(attention.rotary),
    }


def _rotary(rotary: RotarySpec) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if rotary.scaling == "linear":
        scaling = {"type": "linear", "factor": rotary.factor}
    elif rotary.scaling == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": rotary.factor,
            "low_freq_factor": rotary.low_freq_factor,
            "high_freq_factor": rotary.high_freq_factor,
            "original_max_position_embeddings": rotary.original_max_positions,
        }
    return {"rope_theta": rotary.theta, "rope_scaling": scaling}


def _ids(spec: ModelSpec) -> dict[str, Any]:
    eos = spec.eos_token_ids
    return {
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": spec.pad_token_id,
    }


def _texts(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: json.dumps(v, indent=2, sort_keys=True) + "\n" for name, v in files.items()}
