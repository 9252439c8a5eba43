"""Every tensor of a checkpoint: its name and shape.

The canonical name of a tensor is its key in the original checkpoints. transformers renamed some keys of the decoder,
cut the prefixes of the vision tower, and can hold a layer's experts packed in one tensor; all of that maps onto the
original here. Knows nothing of files. Source: the key table in section 3 of the model's specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig

__all__ = ["VISION_PREFIX", "canonical_name", "expected_tensors", "is_tolerated", "stored_parts"]

Shapes = Iterator[tuple[str, tuple[int, ...]]]

VISION_PREFIX = "model.vision_tower.vision_tower.vision_model."
"""What the original puts before the vision tower's own names."""

# transformers' CLIPVisionModel has no prefix at all; nothing else in a checkpoint starts with these words
_VISION_KEY = re.compile(
    r"(?:.*\.)?vision_model\.|(?=(?:embeddings|encoder|(pre_layr|post_layer)norm)\.)"
)
_RENAMED = (
    (re.compile(r"\.feed_forward\.(gate|up|down)_proj\.weight$"), r".moe.experts.0.\1_proj.weight"),
    (re.compile(r"\.feed_forward\.(experts\.\d+\.|router\.)"), r".moe.\1"),
    (re.compile(r"\.pre_ff_layernorm\."), ".pre_moe_layernorm."),
    (re.compile(r"\.mamba\.b_layernorm\."), ".mamba.B_layernorm."),
    (re.compile(r"\.mamba\.c_layernorm\."), ".mamba.C_layernorm."),
)
_PACKED = re.compile(r"(.*)\.feed_forward\.experts\.(gate_up|down)_proj$")


def canonical_name(key: str) -> str:
    """Map a checkpoint's key, in the original's or transformers' naming, onto the original's."""
    if match := _VISION_KEY.match(key):
        return VISION_PREFIX + key[match.end() :]
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key


def stored_parts(key: str, num_experts: int) -> tuple[str, ...]:
    """Name the tensors that one stored tensor holds.

    Args:
        key: Key in the file.
        num_experts: Length of the stored tensor's first axis, which counts the experts if it is packed.

    Returns:
        Canonical names in storage order; the parts have equal sizes and follow one another without gaps. Packed
        `gate_up_proj` [experts, 2 * intermediate, hidden] has each expert's gate rows before its up rows.
    """
    packed = _PACKED.fullmatch(key)
    if not packed:
        return (canonical_name(key),)
    layer, kinds = packed[1], packed[2].split("_")
    return tuple(
        f"{layer}.moe.experts.{expert}.{kind}_proj.weight"
        for expert in range(num_experts)
        for kind in kinds
    )


def is_tolerated(key: str) -> bool:
    """Tell whether a key may be present without meaning: CLIP's position_ids, a saved buffer."""
    return key.endswith("embeddings.position_ids")


def expected_tensors(config: LongLLaVAConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor the checkpoint of a model must hold, by canonical name."""
    decoder, vision = config.decoder, config.vision
    hidden = decoder.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (decoder.vocab_size, hidden)}
    for layer in range(decoder.num_hidden_layers):
        shapes.update(
            (f"model.layers.{layer}.{name}", s) for name, s in _decoder_layer(decoder, layer)
        )
    shapes["model.final_layernorm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (decoder.vocab_size, hidden)
    shapes.update(_linear("model.mm_projector.0", hidden, vision.hidden_size))
    shapes.update(_linear("model.mm_projector.2", hidden, hidden))
    shapes.update((VISION_PREFIX + name, shape) for name, shape in _vision_tower(vision))
    return shapes


def _decoder_layer(config: DecoderConfig, layer: int) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    is_attention = config.layer_kinds[layer] == "attention"
    yield "input_layernorm.weight", (hidden,)
    yield from _attention(config) if is_attention else _mamba(config)
    yield "pre_moe_layernorm.weight", (hidden,)
    is_moe = config.is_moe_layer(layer)
    if is_moe:
        yield "moe.router.weight", (config.num_experts, hidden)
    for expert in range(config.num_experts if is_moe else 1):
        yield f"moe.experts.{expert}.gate_proj.weight", (inner, hidden)
        yield f"moe.experts.{expert}.up_proj.weight", (inner, hidden)
        yield f"moe.experts.{expert}.down_proj.weight", (hidden, inner)


def _attention(config: DecoderConfig) -> Shapes:
    hidden, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
        yield f"self_attn.{name}_proj.weight", (rows, hidden)


def _mamba(config: DecoderConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.d_inner
    rank, state = config.mamba_dt_rank, config.mamba_d_state
    yield "mamba.in_proj.weight", (2 * inner, hidden)
    yield "mamba.conv1d.weight", (inner, 1, config.mamba_d_conv)
    yield "mamba.conv1d.bias", (inner,)
    yield "mamba.x_proj.weight", (rank + 2 * state, inner)
    yield "mamba.dt_layernorm.weight", (rank,)
    yield "mamba.B_layernorm.weight", (state,)
    yield "mamba.C_layernorm.weight", (state,)
    yield from _linear("mamba.dt_proj", inner, rank)
    yield "mamba.A_log", (inner, state)
    yield "mamba.D", (inner,)
    yield "mamba.out_proj.weight", (hidden, inner)


def _vision_tower(config: VisionConfig) -> Shapes:
    width, inner = config.hidden_size, config.intermediate_size
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, 3, config.patch_size, config.patch_size)
    yield "embeddings.position_embedding.weight", (config.num_patches + 1, width)
    yield from _layer_norm("pre_layrnorm", width)
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            yield from _linear(f"{prefix}self_attn.{name}_proj", width, width)
        yield from _layer_norm(f"{prefix}layer_norm1", width)
        yield from _linear(f"{prefix}mlp.fc1", inner, width)
        yield from _linear(f"{prefix}mlp.fc2", width, inner)
        yield from _layer_norm(f"{prefix}layer_norm2", width)
    yield from _layer_norm("post_layernorm", width)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _layer_norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
