"""CLIP vision towers: their config.json, read and written, and their image processor's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.registry import CONFIG_FILE, WHOSE_CONFIG
from longllava_trt.models.spec import VisionSpec

__all__ = ["clip_config", "find_vision_tower", "preprocessor_config", "published_tower"]

_PUBLISHED = {"clip-vit-large-patch14-336": VisionSpec()}
"""Towers that checkpoints only name, by the last part of the name."""

_FIELDS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "layer_norm_eps": "layer_norm_eps",
}
"""Our fields by CLIP's keys."""


def find_vision_tower(checkpoint: Path, tower: str, *, override: Path | None) -> VisionSpec:
    """Return a tower's sizes, from `override`, a folder in the checkpoint, or its published name.

    Raises:
        ConfigError: If none of these exists, or its config has an unsupported value.
    """
    for folder in (override, checkpoint / tower):
        if folder is not None and (folder / CONFIG_FILE).is_file():
            return _read_config(folder / CONFIG_FILE)
    if override is not None:
        raise ConfigError(
            f"{override / CONFIG_FILE}: not found; give a folder with a CLIP config.json"
        )
    published = _PUBLISHED.get(Path(tower).name.replace("_", "-"))
    if published is not None:
        return published
    raise ConfigError(
        f"{checkpoint / CONFIG_FILE}: 'mm_vision_tower' is {tower!r}, which is neither a folder in the checkpoint with "
        f"a config.json nor one of {', '.join(_PUBLISHED)}; name the tower's folder with --vision-tower"
    )


def published_tower(spec: VisionSpec) -> str | None:
    """Return the hub's name of a tower; None if it is not published."""
    return next((f"openai/{name}" for name, known in _PUBLISHED.items() if spec == known), None)


def clip_config(spec: VisionSpec) -> dict[str, Any]:
    """Return the content of a tower's own config.json."""
    return {key: getattr(spec, name) for key, name in _FIELDS.items()} | {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "hidden_act": spec.activation,
        "model_type": "clip_vision_model",
        "num_channels": 3,
    }


def preprocessor_config(spec: VisionSpec) -> dict[str, Any]:
    """Return the content of preprocessor_config.json, as in OpenAI's towers."""
    return {
        "crop_size": spec.image_size,
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
        "size": spec.image_size,
    }


def _read_config(path: Path) -> VisionSpec:
    raw = read_json_object(path, whose=WHOSE_CONFIG)
    raw = raw.get("vision_config", raw)
    if raw.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ConfigError(f"{path}: 'hidden_act' must be 'quick_gelu', got {raw['hidden_act']!r}")
    missing = sorted(set(_FIELDS) - raw.keys() - {"layer_norm_eps"})
    if missing:
        raise ConfigError(f"{path}: missing " + ", ".join(f"'{name}'" for name in missing))
    found = {name: raw[key] for key, name in _FIELDS.items() if key in raw}
    wrong = [
        f"'{key}' must be a number, got {raw[key]!r}"
        for key in _FIELDS
        if key in raw and (isinstance(raw[key], bool) or not isinstance(raw[key], int | float))
    ]
    if wrong:
        raise ConfigError(f"{path}: " + "; ".join(wrong))
    return VisionSpec(**found)
