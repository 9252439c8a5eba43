"""Arithmetic of every stage.

A multiplication and an addition are two operations. Counted are every matrix product, the
convolution, the scan and attention; norms and activations are left out, below one in a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig

__all__ = ["StageFlops", "count_flops", "decoder_flops", "vision_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFlops:
    """Operations of one prefill."""

    vision: float
    projector: float
    decoder_linear: float
    """Grows with the number of tokens: products, convolution, scan; and the head, once."""
    decoder_attention: float
    """Grows with the square of it."""

    @property
    def total(self) -> float:
        """All stages."""
        return self.vision + self.projector + self.decoder_linear + self.decoder_attention


def count_flops(config: LongLLaVAConfig, *, images: int, tokens: int) -> StageFlops:
    """Count the prefill of a prompt.

    Args:
        config: The model.
        images: Images in it.
        tokens: Positions of the whole prompt, those of images included.
    """
    vision, hidden = config.vision, config.decoder.hidden_size
    mlp = vision.num_image_tokens * (vision.hidden_size + hidden) * hidden
    linear, attention = decoder_flops(config.decoder, tokens=tokens, past=0)
    return StageFlops(
        vision=images * vision_flops(vision),
        projector=images * 2.0 * mlp,
        decoder_linear=linear,
        decoder_attention=attention,
    )


def vision_flops(config: VisionConfig) -> float:
    """Count the encoding of one image."""
    width, length = config.hidden_size, config.num_patches + 1
    patches = config.num_patches * 3 * config.patch_size**2 * width
    layer = length * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * length**2 * width
    return 2.0 * (patches + config.num_run_layers * layer)


def decoder_flops(config: DecoderConfig, *, tokens: int, past: int) -> tuple[float, float]:
    """Count ``tokens`` after ``past`` others; returns the part that is linear in them, and attention."""
    layers = range(config.num_hidden_layers)
    kinds = config.layer_kinds
    per_token = sum(_mixer(config, kinds[i]) + _feed_forward(config, i) for i in layers)
    head = config.hidden_size * config.vocab_size
    # token k attends to past + k positions: scores and weighted values
    pairs = tokens * past + tokens * (tokens + 1) / 2
    attention = kinds.count("attention") * 2 * pairs * config.hidden_size
    return 2.0 * (tokens * per_token + head), 2.0 * attention


def _mixer(config: DecoderConfig, kind: str) -> int:
    hidden = config.hidden_size
    if kind == "attention":
        return hidden * (2 * hidden + 2 * config.num_key_value_heads * config.head_dim)
    inner, rank, state = config.d_inner, config.mamba_dt_rank, config.mamba_d_state
    # in_proj, out_proj; x_proj, dt_proj; convolution; decay, input and read-out of every state
    products = 3 * hidden * inner + inner * (rank + 2 * state) + rank * inner
    return products + inner * config.mamba_d_conv + 3 * inner * state


def _feed_forward(config: DecoderConfig, layer: int) -> int:
    mlp = 3 * config.hidden_size * config.intermediate_size
    if not config.is_moe_layer(layer):
        return mlp
    return config.num_experts_per_tok * mlp + config.hidden_size * config.num_experts
