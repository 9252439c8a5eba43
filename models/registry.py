"""Families by `model_type`; each is imported when its first checkpoint is read."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.core.manifest import VISION_CONFIG_FOLDER
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.family import ModelFamily
from longllava_trt.models.spec import DecoderSpec, ModelSpec

__all__ = [
    "CONFIG_FILE",
    "WHOSE_CONFIG",
    "family_of",
    "find_family",
    "find_preset",
    "load_bundle_spec",
    "load_chat",
    "load_decoder_spec",
    "load_family",
    "load_model_spec",
    "preset_names",
    "register_family",
    "trained_context",
    "unregister_family",
]

CONFIG_FILE = "config.json"
WHOSE_CONFIG = "the folder of a checkpoint holds config.json beside its weights"


_UNSAID_CONTEXT = 4096
"""Positions of a model whose config.json gives no number."""


class _Entry(NamedTuple):
    title: str
    module: str
    """Module with the family as `FAMILY`."""


_LLAVA = "longllava_trt.models.llava.family"
_BUILT_IN = {
    "llava_jamba": _Entry("LongLLaVA", "longllava_trt.models.llava_jamba.family"),
    "llava_llama": _Entry("LLaVA in its original format", _LLAVA),
    "llava": _Entry("LLaVA in either format", _LLAVA),
    "llava_mistral": _Entry("LLaVA-1.6 with Mistral in its original format", _LLAVA),
    "llava_next": _Entry("LLaVA-1.6 in transformers' format", _LLAVA),
    "jamba": _Entry("Jamba", "longllava_trt.models.jamba.family"),
}

_FOREIGN = {
    "clip": "CLIP",
    "clip_vision_model": "a CLIP vision tower",
    "llama": "Llama, text alone",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "llava_qwen": "LLaVA with Qwen",
    "mistral": "Mistral, text alone",
    "video_llava": "Video-LLaVA",
    "vipllava": "ViP-LLaVA",
}
"""Models that people try and that are not supported; an error names them."""

_loaded: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> None:
    """Register a family, so that its checkpoints can be used.

    Raises:
        ConfigError: If another family has its `model_type`.
    """
    for model_type in family.model_types:
        if model_type in _BUILT_IN or model_type in _loaded:
            raise ConfigError(
                f"model_type '{model_type}': must be new, but a family has it; choose another"
            )
    _loaded.update(dict.fromkeys(family.model_types, family))


def unregister_family(model_type: str) -> None:
    """Remove a registered family."""
    family = _loaded.get(model_type)
    for word in family.model_types if family is not None else ():
        _loaded.pop(word)


def find_family(model_type: object, *, where: str = "model") -> ModelFamily:
    """Return a family.

    Args:
        model_type: Value in config.json.
        where: Beginning of the error message.

    Raises:
        ConfigError: If it is not supported; names the model, if it is known, and all families.
    """
    if isinstance(model_type, str) and model_type in _loaded:
        return _loaded[model_type]
    if isinstance(model_type, str) and model_type in _BUILT_IN:
        family = importlib.import_module(_BUILT_IN[model_type].module).FAMILY
        assert isinstance(family, ModelFamily), "Bug: the module of a family holds it"
        assert model_type in family.model_types, "Bug: a family says all its words"
        _loaded.update(dict.fromkeys(family.model_types, family))
        return family
    title = _FOREIGN.get(model_type) if isinstance(model_type, str) else None
    got = f"this is {title} (model_type '{model_type}')" if title else _describe(model_type)
    raise ConfigError(f"{where}: {got}; supported: {_supported()}")


def family_of(spec: ModelSpec) -> ModelFamily:
    """Return the family of a model."""
    return find_family(spec.model_type)


def trained_context(spec: ModelSpec) -> int:
    """Return the positions of prompt and answer together that a model was trained for."""
    return family_of(spec).trained_context or spec.max_positions or _UNSAID_CONTEXT


def load_model_spec(
    folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Read and check a checkpoint's config.json, of any family.

    Args:
        folder: Checkpoint.
        vision_tower: Folder whose config.json describes the vision tower, instead of the
            checkpoint.
        ignored_keys: Keys of config.json that its family does not know, to be accepted.

    Raises:
        ConfigError: If its family is not known; or lists every key that is missing, unknown, or has
            a value that is not supported.
    """
    family = load_family(folder)
    return family.read_config(folder, vision_tower=vision_tower, ignored_keys=ignored_keys)


def load_bundle_spec(bundle: Path) -> ModelSpec:
    """Read the model of a bundle, which carries its vision tower's config in a folder of its own.

    Raises:
        ConfigError: As `load_model_spec`.
    """
    tower = bundle / VISION_CONFIG_FOLDER
    return load_model_spec(bundle, vision_tower=tower if tower.is_dir() else None)


def load_decoder_spec(folder: Path) -> DecoderSpec:
    """Read the decoder of a checkpoint or bundle; the vision tower's config is not needed.

    Raises:
        ConfigError: As `load_model_spec`.
    """
    return load_family(folder).read_decoder(folder)


def load_chat(folder: Path, prompt_format: str | None = None) -> ChatFormat:
    """Return the chat format of a checkpoint or bundle.

    Args:
        folder: Checkpoint or bundle.
        prompt_format: Name of another format than its own.

    Raises:
        ConfigError: If its files name no format that can be used.
        InputError: If its family has no format of that name.
    """
    family = load_family(folder)
    if family.read_chat is not None:
        return family.read_chat(folder, prompt_format)
    if prompt_format not in (None, family.chat.name):
        raise InputError(
            f"run: prompt_format has no meaning for {family.title}, whose prompts have one format, got '{prompt_format}'; leave "
            "it out"
        )
    return family.chat


def preset_names() -> tuple[str, ...]:
    """Return the names of all families' presets."""
    return tuple(name for family in _families() for name in family.presets)


def find_preset(name: str) -> ModelSpec:
    """Return a preset; `InputError` if there is none of that name."""
    for family in _families():
        if name in family.presets:
            return family.presets[name]
    raise InputError(f"synth: preset must be one of {', '.join(preset_names())}, got {name!r}")


def _families() -> list[ModelFamily]:
    families = [find_family(name) for name in {**_BUILT_IN, **_loaded}]
    return [family for i, family in enumerate(families) if family not in families[:i]]


def load_family(folder: Path) -> ModelFamily:
    """Return the family that config.json in a checkpoint or bundle names.

    Raises:
        ConfigError: If there is no such file, or the family is not known.
    """
    path = folder / CONFIG_FILE
    raw = read_json_object(path, whose=WHOSE_CONFIG)
    return find_family(raw.get("model_type"), where=str(path))


def _describe(model_type: object) -> str:
    if model_type is None:
        return "'model_type' is missing, which says what a model is"
    return f"model_type {model_type!r} is not known"


def _supported() -> str:
    titles = {name: entry.title for name, entry in _BUILT_IN.items()}
    titles |= {name: family.title for name, family in _loaded.items() if name not in titles}
    return ", ".join(f"{title} ('{name}')" for name, title in titles.items())
