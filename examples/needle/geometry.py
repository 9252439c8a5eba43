"""The size of the trained model: the published architecture, narrow."""

from __future__ import annotations

from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig

__all__ = ["CONFIG"]

CONFIG = LongLLaVAConfig(
    vision=VisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
    ),
    decoder=DecoderConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=3,
        num_key_value_heads=1,
        attn_layer_period=8,
        attn_layer_offset=4,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=8,
        num_experts_per_tok=2,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_expand=2,
        mamba_dt_rank=16,
        rms_norm_eps=1e-6,
    ),
    torch_dtype="float16",
    tokenizer_model_max_length=40960,
)
"""One block of eight layers; 4 positions an image, 11 with its markers."""
