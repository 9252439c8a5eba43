"""Arithmetic of every stage.

A multiplication and an addition are two operations. Counted are every matrix product, the
convolution, the scan and attention; norms and activations are left out, below one in a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.models.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    MixerSpec,
    ModelSpec,
    VisionSpec,
)

__all__ = ["StageFlops", "count_flops", "decoder_flops", "vision_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFlops:
    """Operations of one prefill."""

    vision: float
    projector: float
    decoder_linear: float
    """Part that grows with the number of tokens: products, convolution, scan; the head, once."""
    decoder_attention: float
    """Part that grows with the square of it."""

    @property
    def total(self) -> float:
        """All stages."""
        return self.vision + self.projector + self.decoder_linear + self.decoder_attention


def count_flops(config: ModelSpec, *, views: int, tokens: int) -> StageFlops:
    """Count the prefill of a prompt.

    Args:
        config: The model.
        views: Inputs of the vision tower: images, and their tiles.
        tokens: Positions of the whole prompt, those of images included.
    """
    linear, attention = decoder_flops(config.decoder, tokens=tokens, past=0)
    return StageFlops(
        vision=views * vision_flops(config.vision) if config.vision else 0.0,
        projector=views * _projector_flops(config),
        decoder_linear=linear,
        decoder_attention=attention,
    )


def _projector_flops(config: ModelSpec) -> float:
    if config.vision is None or config.connector is None:
        return 0.0
    hidden = config.decoder.hidden_size
    widths = config.vision.feature_size + (config.connector.num_layers - 1) * hidden
    return 2.0 * config.num_image_tokens * widths * hidden


def vision_flops(config: VisionSpec) -> float:
    """Count the encoding of one view."""
    width, length = config.hidden_size, config.num_patches + 1
    patches = config.num_patches * 3 * config.patch_size**2 * width
    layer = length * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * length**2 * width
    return 2.0 * (patches + config.num_run_layers * layer)


def decoder_flops(config: DecoderSpec, *, tokens: int, past: int) -> tuple[float, float]:
    """Count tokens after others; return the part that is linear in them, and attention."""
    hidden = config.hidden_size
    per_token = sum(
        _mixer(layer.mixer, hidden) + _feed_forward(layer.feed_forward, hidden)
        for layer in config.layers
    )
    head = hidden * config.vocab_size
    # token k attends to past + k positions: scores and weighted values
    pairs = tokens * past + tokens * (tokens + 1) / 2
    attention = sum(2 * pairs * mixer.q_size for mixer in config.attention_layers.values())
    return 2.0 * (tokens * per_token + head), 2.0 * attention


def _mixer(mixer: MixerSpec, hidden: int) -> int:
    if isinstance(mixer, AttentionSpec):
        return hidden * (2 * mixer.q_size + 2 * mixer.kv_size)
    inner, rank, state = mixer.d_inner, mixer.dt_rank, mixer.d_state
    # in_proj, out_proj; x_proj, dt_proj; convolution; decay, input and read-out of every state
    products = 3 * hidden * inner + inner * (rank + 2 * state) + rank * inner
    return products + inner * mixer.d_conv + 3 * inner * state


def _feed_forward(forward: FeedForwardSpec, hidden: int) -> int:
    mlp = 3 * hidden * forward.intermediate_size
    if not isinstance(forward, ExpertsSpec):
        return mlp
    return forward.top_k * mlp + hidden * forward.num_experts
