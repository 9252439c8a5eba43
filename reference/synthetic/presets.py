"""Sizes of synthetic checkpoints: small ones that run anywhere, and the two published models.

All have the published layer pattern; eight layers hold each kind of layer.
"""

from __future__ import annotations

from dataclasses import replace

from longllava_trt.core.errors import InputError
from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig

__all__ = ["PRESETS", "PUBLISHED", "preset_config"]

_MAX_CONTEXT = 40960

_PATTERN = {
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
_DENSE = {"num_experts": 1, "num_experts_per_tok": 1}
_ROUTED = {"num_experts": 16, "num_experts_per_tok": 2}
_TINY = {
    "num_hidden_layers": 8,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 224,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 4,
}
_MINI = {
    "num_hidden_layers": 8,
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "mamba_dt_rank": 32,
}
_FULL = {
    "num_hidden_layers": 32,
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "mamba_dt_rank": 256,
}
_TINY_VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2
)
_MINI_VISION = VisionConfig(
    hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
)


def _preset(vision: VisionConfig, torch_dtype: str, **decoder: int) -> LongLLaVAConfig:
    return LongLLaVAConfig(
        vision=vision,
        decoder=DecoderConfig(**_PATTERN, **decoder, rms_norm_eps=1e-6),
        torch_dtype=torch_dtype,
        tokenizer_model_max_length=_MAX_CONTEXT,
    )


PRESETS = {
    "tiny": _preset(_TINY_VISION, "float32", **_TINY, num_experts=4, num_experts_per_tok=2),
    "tiny-dense": _preset(_TINY_VISION, "float32", **_TINY, **_DENSE),
    "mini": _preset(_MINI_VISION, "float32", **_MINI, **_ROUTED),
    "9b": _preset(VisionConfig(), "bfloat16", **_FULL, **_DENSE),
    "53b": _preset(VisionConfig(), "bfloat16", **_FULL, **_ROUTED),
}
"""`tiny`: a few megabytes, both mixers, dense and routed layers. `tiny-dense`: the same with one expert and no router,
as the 9B. `mini`: large enough to measure speed on a CPU. `9b` and `53b`: the published sizes."""

PUBLISHED = frozenset({"9b", "53b"})
"""Presets that are too large to be filled with random numbers by accident."""


def preset_config(preset: str, layers: int | None = None) -> LongLLaVAConfig:
    """Return a preset, or its first decoder layers alone.

    Raises:
        InputError: If there is no such preset, or it has fewer layers.
    """
    if preset not in PRESETS:
        raise InputError(f"synth: preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = PRESETS[preset]
    most = config.decoder.num_hidden_layers
    if layers is None:
        return config
    if not 1 <= layers <= most:
        raise InputError(f"synth: layers of preset {preset} must be from 1 to {most}, got {layers}")
    return replace(config, decoder=replace(config.decoder, num_hidden_layers=layers))
