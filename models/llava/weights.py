"""LLaVA's names of tensors, in the original's format and in transformers'.

The canonical name of a tensor is its key in the original checkpoints. transformers has used three
namings of its own, and CLIP's checkpoints a fourth; here all of them become the original's. Knows
nothing about files. Source: the table in section 2 of the series' specification.
"""

from __future__ import annotations

import re

from longllava_trt.models.family import Renaming, rename

__all__ = [
    "VISION_PREFIX",
    "canonical_name",
    "huggingface_name",
    "is_tolerated",
    "original_name",
    "stored_parts",
    "tensor_name",
]

VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
"""Prefix of the vision tower's own names in the original."""

_PARAMETERS: Renaming = (
    (re.compile(r"^(embed_tokens|layers|image_newline)\b"), r"model.\1"),
    (re.compile(r"^final_norm\."), "model.norm."),
    (re.compile(r"^projector\."), "model.mm_projector."),
    (re.compile(r"^vision\."), VISION_PREFIX),
    (re.compile(r"\.mixer_norm\."), ".input_layernorm."),
    (re.compile(r"\.feed_forward_norm\."), ".post_attention_layernorm."),
    (re.compile(r"\.attention\."), ".self_attn."),
    (re.compile(r"\.feed_forward\.(gate|up|down)\."), r".mlp.\1_proj."),
)
"""Patterns from paths to the original's names."""

# a checkpoint of CLIP alone has its tower's names with or without `vision_model.`; nothing else in
# a checkpoint starts with these words
_VISION_KEY = re.compile(
    r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?"
    r"|vision_model\.|(?=(?:embeddings|encoder|(pre_layr|post_layer)norm)\.)"
)
_RENAMED: Renaming = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(?:model\.language_model|language_model\.model)\."), "model."),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_1\."), "model.mm_projector.0."),
    (re.compile(r"^(?:model\.)?multi_modal_projector\.linear_2\."), "model.mm_projector.2."),
    (re.compile(r"^model\.mm_projector\.(weight|bias)$"), r"model.mm_projector.0.\1"),
    (re.compile(r"^image_newline$"), "model.image_newline"),
)
_PUBLISHED: Renaming = (
    (re.compile(r"^" + re.escape(VISION_PREFIX)), "vision_tower.vision_model."),
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.image_newline$"), "image_newline"),
    (re.compile(r"^(model|lm_head)\."), r"language_model.\1."),
)
"""Patterns from the original's names to those of transformers' published files."""


def tensor_name(path: str) -> str:
    """Return the canonical name of a parameter by its path, or of a prefix of paths."""
    return rename(path, _PARAMETERS)


def original_name(name: str, *, is_linear: bool) -> str:
    """Return the key in the original's files; a projector of one layer has no number there."""
    return name.replace("mm_projector.0.", "mm_projector.") if is_linear else name


def huggingface_name(name: str) -> str:
    """Return the key in transformers' published files."""
    return rename(name, _PUBLISHED)


def canonical_name(key: str) -> str:
    """Return the canonical name for a key in any of the namings."""
    if match := _VISION_KEY.match(key):
        return VISION_PREFIX + key[match.end() :]
    return rename(key, _RENAMED)


def stored_parts(key: str, _length: int) -> tuple[str, ...]:
    """Return the one name of a stored tensor; nothing is packed."""
    return (canonical_name(key),)


def is_tolerated(key: str) -> bool:
    """Return whether a key is allowed but ignored: saved buffers of CLIP and of rotary positions."""
    return key.endswith(("embeddings.position_ids", "rotary_emb.inv_freq"))
