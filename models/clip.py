"""CLIP vision towers: their config.json, read and written, and their image processor's config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.core.manifest import VISION_CONFIG_FOLDER
from longllava_trt.models.config_reader import ConfigReader, located
from longllava_trt.models.registry import CONFIG_FILE, WHOSE_CONFIG
from longllava_trt.models.spec import VisionSpec
from longllava_trt.models.towers import known_tower

__all__ = [
    "CLIP",
    "PREPROCESSOR_FILE",
    "clip_config",
    "find_preprocessor",
    "find_vision_tower",
    "preprocessor_config",
    "read_vision_config",
]

PREPROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"
"""Of a whole processor, in which newer transformers keep the settings of the image processor."""

CLIP: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
"""Defaults of transformers' class, for files that list only what differs from them."""

_MODEL_TYPES = ("clip_vision_model", "clip")
_HARMLESS = ("attention_dropout", "dropout", "dtype", "projection_dim", "torch_dtype", "vocab_size")
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
    """Return a tower's sizes.

    They are in ``override``, in a folder of the checkpoint, in the folder that a bundle has for
    them, or known by the tower's published name.

    Raises:
        ConfigError: If none of these exists, or its config has an unsupported value.
    """
    if override is not None:
        if (override / CONFIG_FILE).is_file():
            return _read_config(override / CONFIG_FILE)
        raise ConfigError(
            f"{override / CONFIG_FILE}: not found; give a folder with a CLIP config.json"
        )
    for folder in (checkpoint / tower, checkpoint / VISION_CONFIG_FOLDER):
        if (folder / CONFIG_FILE).is_file():
            return _read_config(folder / CONFIG_FILE)
    if (known := known_tower(tower)) is not None:
        return known
    raise ConfigError(
        f"{checkpoint / CONFIG_FILE}: 'mm_vision_tower' is {tower!r}, which is neither a folder in the checkpoint with "
        "a config.json nor a published CLIP tower that is known; name the tower's folder with --vision-tower"
    )


def find_preprocessor(
    checkpoint: Path, spec: VisionSpec, *, tower: str, override: Path | None
) -> dict[str, Any]:
    """Return the settings of a checkpoint's image processor.

    They are in the checkpoint, else beside its vision tower, else those of OpenAI's towers.

    Args:
        checkpoint: Folder.
        spec: The vision tower.
        tower: Name of the tower in config.json; may be a folder of the checkpoint.
        override: Folder of another tower.

    Raises:
        ConfigError: If a file is damaged.
    """
    for folder in (checkpoint, override, checkpoint / tower):
        if folder is None:
            continue
        if (folder / PREPROCESSOR_FILE).is_file():
            return read_json_object(folder / PREPROCESSOR_FILE, whose="an image processor has it")
        if (folder / _PROCESSOR_FILE).is_file():
            whole = read_json_object(folder / _PROCESSOR_FILE, whose="a processor has it")
            if isinstance(found := whole.get("image_processor"), dict):
                return found
    return preprocessor_config(spec)


def read_vision_config(reader: ConfigReader, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys of a CLIP tower.

    Args:
        reader: The object that has them.
        defaults: Values of keys that are absent; the others are required.

    Returns:
        Fields of `VisionSpec`.
    """
    reader.one_of("model_type", _MODEL_TYPES, "clip_vision_model", why="another kind of tower")
    reader.one_of("num_channels", (3,), 3)
    reader.harmless(_HARMLESS)
    fields: dict[str, Any] = {
        _FIELDS[key]: reader.whole(key, defaults.get(key)) for key in _FIELDS if "eps" not in key
    }
    fields["layer_norm_eps"] = reader.real("layer_norm_eps", 1e-5)
    fields["activation"] = reader.one_of("hidden_act", ("quick_gelu", "gelu"), "quick_gelu")
    return fields


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
    """Read a tower's own config.json, or that of a CLIP with a text side."""
    raw = read_json_object(path, whose=WHOSE_CONFIG)
    vision = raw.get("vision_config", raw)
    if not isinstance(vision, dict):
        raise ConfigError(f"{path}: 'vision_config' must be an object, got {vision!r}")
    reader = ConfigReader(vision)
    fields = read_vision_config(reader, {})
    # the tower's file may hold anything else: what it computes is what these keys say
    reader.harmless(vision)
    reader.finish(str(path))
    with located(str(path)):
        return VisionSpec(**fields)
