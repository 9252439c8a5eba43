"""LongLLaVA's config.json (`model_type: llava_jamba`), read strictly.

A key that changes the mathematics is either supported or refused; keys that do not are on a list.
Nothing is guessed from a path, except the name that the original itself uses for its vision tower.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.clip import find_vision_tower
from longllava_trt.models.jamba_layers import JAMBA_KEYS, jamba_decoder
from longllava_trt.models.registry import CONFIG_FILE, WHOSE_CONFIG
from longllava_trt.models.spec import (
    ConnectorSpec,
    DecoderSpec,
    ImageSpec,
    ModelSpec,
    VisionSpec,
)

__all__ = ["MODEL_TYPE", "model_from_keys", "read_config", "read_decoder"]

logger = logging.getLogger(__name__)

MODEL_TYPE = "llava_jamba"

_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": (MODEL_TYPE,),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "mamba_conv_bias": (True,),
    "mamba_proj_bias": (False,),
    "mamba_inner_layernorms": (True,),
    "sliding_window": (None,),
    "attention_dropout": (0.0,),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "mm_use_im_patch_token": (False,),
    "mm_use_im_start_end": (False,),
    "image_aspect_ratio": ("pad",),
    "resamplePooling": ("2d",),
    "use_mm_proj": (True,),
}
"""Keys that change the mathematics; no released model has other values."""

_OPTIONAL_FIXED = frozenset(
    {"attention_dropout", "sliding_window", "use_mm_proj", "resamplePooling", "mm_patch_merge_type"}
)

_HARMLESS = frozenset(
    """
    _attn_implementation_autoset _name_or_path architectures attn_implementation auto_map
    calc_logits_for_entire_prompt delay_load dtype freeze_mm_mlp_adapter initializer_range max_position_embeddings
    mm_projector_lr n_ctx num_logits_to_keep output_router_logits router_aux_loss_coef tokenizer_padding_side
    transformers_version tune_mm_mlp_adapter unfreeze_mm_vision_tower use_cache use_mamba_kernels
    """.split()
)
"""Keys without influence on inference; transformers writes some of them by itself."""

_OTHER_KEYS = frozenset(
    """
    bos_token_id eos_token_id mm_hidden_size mm_vision_tower pad_token_id tokenizer_model_max_length torch_dtype
    """.split()
)

_POOLING = 2


def read_config(
    folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Read and check a checkpoint's config.json.

    Args:
        folder: Checkpoint.
        vision_tower: Folder whose config.json describes the vision tower, instead of
            `mm_vision_tower`.
        ignored_keys: Unknown keys to accept.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    raw = _checked(folder, ignored_keys)
    where = str(folder / CONFIG_FILE)
    if "resamplePooling" not in raw:
        logger.warning(
            "%s has no 'resamplePooling'; using '2d' (2x2 patches a token), as the released models do",
            where,
        )
    # before the search for the tower: errors here do not depend on it
    jamba_decoder(raw, where)
    vision = find_vision_tower(folder, str(raw["mm_vision_tower"]), override=vision_tower)
    if vision.hidden_size != raw["mm_hidden_size"]:
        raise ConfigError(
            f"{where}: 'mm_hidden_size' is {raw['mm_hidden_size']}, but the vision tower is {vision.hidden_size} wide"
        )
    return model_from_keys(raw, vision, where=where)


def read_decoder(folder: Path, *, ignored_keys: Iterable[str] = ()) -> DecoderSpec:
    """Read and check the decoder's part of config.json; the vision tower is not needed."""
    return jamba_decoder(_checked(folder, ignored_keys), str(folder / CONFIG_FILE))


def model_from_keys(
    raw: Mapping[str, Any], vision: VisionSpec, *, where: str = CONFIG_FILE
) -> ModelSpec:
    """Return the model that checked keys describe.

    Args:
        raw: Content of config.json.
        vision: The vision tower.
        where: Beginning of error messages.
    """
    eos = raw.get("eos_token_id", 2)
    return ModelSpec(
        model_type=MODEL_TYPE,
        vision=vision,
        connector=ConnectorSpec(num_layers=2, pooling=_POOLING),
        images=ImageSpec(aspect_ratio="pad"),
        decoder=jamba_decoder(raw, where),
        torch_dtype=raw.get("torch_dtype") or "bfloat16",
        bos_token_id=raw.get("bos_token_id", 1),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        pad_token_id=raw.get("pad_token_id", 0),
        max_positions=raw.get("tokenizer_model_max_length"),
        tower=raw.get("mm_vision_tower"),
        source=raw,
    )


def _checked(folder: Path, ignored_keys: Iterable[str]) -> dict[str, Any]:
    """Check all keys of config.json and return its content."""
    path = folder / CONFIG_FILE
    raw = read_json_object(path, whose=WHOSE_CONFIG)
    known = {*JAMBA_KEYS, *_FIXED, *_HARMLESS, *_OTHER_KEYS}
    ignored = set(ignored_keys) & (raw.keys() - known)
    if ignored:
        logger.warning("%s: ignoring %s, as told", path, ", ".join(map(repr, sorted(ignored))))
    problems = _key_problems({k: v for k, v in raw.items() if k not in ignored}, known)
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    return raw


def _key_problems(raw: Mapping[str, Any], known: set[str]) -> list[str]:
    """Return all faults of the keys of config.json."""
    required = {
        *JAMBA_KEYS,
        *(_FIXED.keys() - _OPTIONAL_FIXED),
        "mm_vision_tower",
        "mm_hidden_size",
    }
    problems = [f"missing key '{key}'" for key in sorted(required - raw.keys())]
    problems += [
        f"unknown key '{key}' (its effect on the model is not known to this version)"
        for key in sorted(raw.keys() - known)
    ]
    problems += [
        f"'{key}' must be {' or '.join(map(repr, allowed))}, got {raw[key]!r}"
        for key, allowed in _FIXED.items()
        if key in raw and raw[key] not in allowed
    ]
    return problems
