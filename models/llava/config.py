"""LLaVA's config.json of either format: one `model_type`, `llava`, is used by both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.clip import find_vision_tower
from longllava_trt.models.config_reader import located
from longllava_trt.models.llava import huggingface, original
from longllava_trt.models.llava.keys import LlavaKeys
from longllava_trt.models.registry import CONFIG_FILE, WHOSE_CONFIG
from longllava_trt.models.spec import DecoderSpec, ModelSpec, VisionSpec

__all__ = ["is_huggingface", "read_config", "read_decoder"]

_NESTED = ("text_config", "vision_config")
_FLAT = "mm_vision_tower"


def read_config(
    folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Read and check a checkpoint's config.json.

    Args:
        folder: Checkpoint or bundle.
        vision_tower: Folder whose config.json describes the vision tower, instead of what the
            checkpoint says.
        ignored_keys: Unknown keys to accept.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    raw, where = _read(folder)
    if is_huggingface(raw, where):
        keys, vision = huggingface.read_huggingface(raw, where, ignored_keys=ignored_keys)
        if vision_tower is not None:
            vision = find_vision_tower(folder, "", override=vision_tower)
        return _model(keys, vision, raw, where)
    keys, tower = original.read_original(raw, where, ignored_keys=ignored_keys)
    vision = find_vision_tower(folder, tower.name, override=vision_tower)
    if vision.hidden_size != tower.hidden_size:
        raise ConfigError(
            f"{where}: 'mm_hidden_size' is {tower.hidden_size}, but the vision tower is {vision.hidden_size} wide"
        )
    return replace(_model(keys, vision, raw, where), tower=tower.name)


def read_decoder(folder: Path, *, ignored_keys: Iterable[str] = ()) -> DecoderSpec:
    """Read and check config.json, and return the decoder; the tower's own file is not needed."""
    raw, where = _read(folder)
    if is_huggingface(raw, where):
        keys, _ = huggingface.read_huggingface(raw, where, ignored_keys=ignored_keys)
    else:
        keys, _ = original.read_original(raw, where, ignored_keys=ignored_keys)
    with located(where):
        return keys.decoder.decoder()


def is_huggingface(raw: Mapping[str, Any], where: str) -> bool:
    """Return whether a config.json is in transformers' format, not in the original's.

    Raises:
        ConfigError: If `model_type` may be either, and nothing else says which.
    """
    model_type = raw.get("model_type")
    if model_type not in original.MODEL_TYPES or model_type not in huggingface.MODEL_TYPES:
        return model_type in huggingface.MODEL_TYPES
    if any(key in raw for key in _NESTED):
        return True
    if _FLAT in raw:
        return False
    raise ConfigError(
        f"{where}: model_type '{model_type}' is of two formats: expected '{_NESTED[0]}' (transformers) or "
        f"'{_FLAT}' (the original), got neither; fetch the file again"
    )


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / CONFIG_FILE
    return read_json_object(path, whose=WHOSE_CONFIG), str(path)


def _model(keys: LlavaKeys, vision: VisionSpec, raw: Mapping[str, Any], where: str) -> ModelSpec:
    with located(where):
        return keys.model(vision, raw)
