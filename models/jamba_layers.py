"""Jamba's keys in a config.json: a pattern of Mamba and attention layers, dense and routed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.spec import (
    AttentionSpec,
    DecoderSpec,
    DenseSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    MambaSpec,
    MixerSpec,
    check_depth,
)

__all__ = ["JAMBA_KEYS", "jamba_decoder"]

JAMBA_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads",
    "attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset",
    "num_experts", "num_experts_per_tok",
    "mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_dt_rank", "rms_norm_eps",
)  # fmt: skip
"""Keys of the decoder's numbers; all are required."""

_ZERO_ALLOWED = frozenset({"attn_layer_offset", "expert_layer_offset"})


def jamba_decoder(raw: Mapping[str, Any], where: str, *, tied: bool = False) -> DecoderSpec:
    """Return the decoder.

    Args:
        raw: Object that has all of `JAMBA_KEYS`.
        where: Beginning of error messages.
        tied: Whether the head is the embedding table.

    Raises:
        ConfigError: If a number is not one, or the numbers do not fit one another.
    """
    keys = {name: raw[name] for name in JAMBA_KEYS}
    if keys["mamba_dt_rank"] == "auto" and isinstance(keys["hidden_size"], int):
        keys["mamba_dt_rank"] = -(-keys["hidden_size"] // 16)
    problems = _number_problems(keys)
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    check_depth(keys["num_hidden_layers"], where=where)
    heads, hidden = keys["num_attention_heads"], keys["hidden_size"]
    if hidden % heads or heads % keys["num_key_value_heads"]:
        whole, part = (hidden, heads) if hidden % heads else (heads, keys["num_key_value_heads"])
        raise ConfigError(f"{where}: decoder: {whole} is not divisible by {part}")
    if keys["num_experts_per_tok"] > keys["num_experts"]:
        raise ConfigError(
            f"{where}: decoder: num_experts_per_tok {keys['num_experts_per_tok']} exceeds num_experts "
            f"{keys['num_experts']}"
        )
    return DecoderSpec(
        layers=tuple(_layer(keys, i) for i in range(keys["num_hidden_layers"])),
        vocab_size=keys["vocab_size"],
        hidden_size=hidden,
        rms_norm_eps=keys["rms_norm_eps"],
        tie_embeddings=tied,
    )


def _number_problems(keys: Mapping[str, Any]) -> list[str]:
    """Return faults of the decoder's numbers, one kind of fault at a time."""
    problems = [
        f"'{name}' must be a number, got {value!r}"
        for name, value in keys.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ] or [
        f"'{name}' must be a whole number, got {value!r}"
        for name, value in keys.items()
        if name != "rms_norm_eps" and not isinstance(value, int)
    ]
    if problems:
        return problems
    bad = [
        f"{name}={value!r}"
        for name, value in keys.items()
        if not value > 0 and not (name in _ZERO_ALLOWED and value == 0)
    ]
    return [f"decoder: must be positive: {', '.join(bad)}"] if bad else []


def _layer(keys: Mapping[str, Any], layer: int) -> LayerSpec:
    """Return one layer of the pattern; a single expert is never routed."""
    hidden, inner = keys["hidden_size"], keys["intermediate_size"]
    mixer: MixerSpec
    if layer % keys["attn_layer_period"] == keys["attn_layer_offset"]:
        heads = keys["num_attention_heads"]
        mixer = AttentionSpec(
            num_heads=heads, num_kv_heads=keys["num_key_value_heads"], head_dim=hidden // heads
        )
    else:
        mixer = MambaSpec(
            d_inner=keys["mamba_expand"] * hidden,
            d_state=keys["mamba_d_state"],
            d_conv=keys["mamba_d_conv"],
            dt_rank=keys["mamba_dt_rank"],
        )
    forward: FeedForwardSpec = DenseSpec(intermediate_size=inner)
    routed = layer % keys["expert_layer_period"] == keys["expert_layer_offset"]
    if keys["num_experts"] > 1 and routed:
        forward = ExpertsSpec(
            num_experts=keys["num_experts"],
            top_k=keys["num_experts_per_tok"],
            intermediate_size=inner,
        )
    return LayerSpec(mixer=mixer, feed_forward=forward)
