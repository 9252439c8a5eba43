"""The size of the trained model: the published architecture, narrow."""

from __future__ import annotations

from longllava_trt.models.llava_jamba.presets import compose
from longllava_trt.models.spec import VisionSpec

__all__ = ["CONFIG", "VISION"]

VISION = VisionSpec(
    hidden_size=96,
    intermediate_size=256,
    num_layers=5,
    num_heads=3,
    image_size=56,
    patch_size=14,
)
CONFIG = compose(
    VISION,
    "float16",
    vocab_size=512,
    hidden_size=96,
    intermediate_size=128,
    num_hidden_layers=8,
    num_attention_heads=3,
    num_key_value_heads=1,
    num_experts=8,
    num_experts_per_tok=2,
    mamba_dt_rank=16,
)
"""One block of eight layers; 4 positions an image, 11 with its markers."""
