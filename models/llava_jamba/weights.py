"""LongLLaVA's names of tensors.

The canonical name of a tensor is its key in the original checkpoints. transformers renamed some
keys of the decoder, removed the prefixes of the vision tower, and can pack a layer's experts in one
tensor; here all of these become the original's names. Knows nothing about files. Source: the key
table in section 3 of the model's specification.
"""

from __future__ import annotations

import re

from longllava_trt.models.family import Renaming, rename, stacked_names

__all__ = ["VISION_PREFIX", "canonical_name", "is_tolerated", "stored_parts", "tensor_name"]

VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
"""Prefix of the vision tower's own names in the original."""

_PARAMETERS: Renaming = (
    (re.compile(r"^(embed_tokens|layers)\."), r"model.\1."),
    (re.compile(r"^final_norm\."), "model.final_layernorm."),
    (re.compile(r"^projector\."), "model.mm_projector."),
    (re.compile(r"^vision\."), VISION_PREFIX),
    (re.compile(r"\.mixer_norm\."), ".input_layernorm."),
    (re.compile(r"\.feed_forward_norm\."), ".pre_moe_layernorm."),
    (re.compile(r"\.attention\."), ".self_attn."),
    (re.compile(r"\.mamba\.(dt|B|C)_norm\."), r".mamba.\1_layernorm."),
    # a dense layer is the original's container with one expert
    (re.compile(r"\.feed_forward\.(gate|up|down)\.weight$"), r".moe.experts.0.\1_proj.weight"),
    (
        re.compile(r"\.feed_forward\.experts\.(\d+)\.(gate|up|down)\.weight$"),
        r".moe.experts.\1.\2_proj.weight",
    ),
    (re.compile(r"\.feed_forward\."), ".moe."),
)
"""Patterns from paths to the original's names."""

# transformers' CLIPVisionModel has no prefix at all; nothing else in a checkpoint starts with these
# words
_VISION_KEY = re.compile(
    r"(?:.*\.)?vision_model\.|(?=(?:embeddings|encoder|(pre_layr|post_layer)norm)\.)"
)
_RENAMED: Renaming = (
    (re.compile(r"\.feed_forward\.(gate|up|down)_proj\.weight$"), r".moe.experts.0.\1_proj.weight"),
    (re.compile(r"\.feed_forward\.(experts\.\d+\.|router\.)"), r".moe.\1"),
    (re.compile(r"\.pre_ff_layernorm\."), ".pre_moe_layernorm."),
    (re.compile(r"\.mamba\.b_layernorm\."), ".mamba.B_layernorm."),
    (re.compile(r"\.mamba\.c_layernorm\."), ".mamba.C_layernorm."),
)
_PACKED = re.compile(r"(.*)\.feed_forward\.experts\.(gate_up|down)_proj$")


def tensor_name(path: str) -> str:
    """Return the original's name of a parameter by its path, or of a prefix of paths."""
    return rename(path, _PARAMETERS)


def canonical_name(key: str) -> str:
    """Return the original's key for a key in the original's or transformers' naming."""
    if match := _VISION_KEY.match(key):
        return VISION_PREFIX + key[match.end() :]
    return rename(key, _RENAMED)


def stored_parts(key: str, num_experts: int) -> tuple[str, ...]:
    """Return the names of the tensors in one stored tensor.

    Args:
        key: Key in the file.
        num_experts: Length of the stored tensor's first axis; the number of experts if it is
            packed.

    Returns:
        Canonical names in storage order; the parts have equal sizes and no gaps between them.
        Packed `gate_up_proj` [experts, 2 * intermediate, hidden] has each expert's gate rows before
        its up rows.
    """
    packed = _PACKED.fullmatch(key)
    if not packed:
        return (canonical_name(key),)
    return stacked_names(f"{packed[1]}.moe.experts.", packed[2], num_experts)


def is_tolerated(key: str) -> bool:
    """Return whether a key is allowed but ignored: CLIP's position_ids, a saved buffer."""
    return key.endswith("embeddings.position_ids")
