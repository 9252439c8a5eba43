"""Arithmetic of every stage, counted twice: as it is, and as the paper counted it.

A multiplication and an addition are two operations. The honest count takes every matrix product, the
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

__all__ = ["StageFlops", "count_flops", "decoder_flops", "paper_flops", "vision_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFlops:
    """Operations of one prefill."""

    vision: float
    projector: float
    decoder_linear: float
    """What grows with the number of tokens: products, convolution, scan; and the head, once."""
    decoder_attention: float
    """What grows with its square."""

    @property
    def total(self) -> float:
        """All stages."""
        return self.vision + self.projector + self.decoder_linear + self.decoder_attention


def count_flops(config: ModelSpec, *, images: int, tokens: int) -> StageFlops:
    """Count the prefill of a prompt.

    Args:
        config: The model.
        images: Images in it.
        tokens: Positions of the whole prompt, those of images included.
    """
    linear, attention = decoder_flops(config.decoder, tokens=tokens, past=0)
    return StageFlops(
        vision=images * vision_flops(config.vision) if config.vision else 0.0,
        projector=images * _projector_flops(config),
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
    """Count the encoding of one image."""
    width, length = config.hidden_size, config.num_patches + 1
    patches = config.num_patches * 3 * config.patch_size**2 * width
    layer = length * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * length**2 * width
    return 2.0 * (patches + config.num_run_layers * layer)


def decoder_flops(config: DecoderSpec, *, tokens: int, past: int) -> tuple[float, float]:
    """Count N tokens after N others; returns what is linear in them, and attention."""
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


_SOFTMAX, _ACTIVATION, _DROPOUT, _LAYER_NORM = 5, 8, 4, 5
_PAPER_LENGTH = 4096
_PAPER_SCAN = 9 * 256 * 16


def paper_flops(config: ModelSpec, *, images: int, moe_layers: int | None = None) -> float:
    """Count as the paper's table does, which is not what the model computes.

    It is the counter that was written for ELECTRA (Clark et al. 2020), with a block for Mamba: an MLP of two
    matrices instead of three, no Mamba projection, a scan of 256 channels, no vision tower, an image's own positions
    and no text; attention blocks are counted for 4096 tokens whatever the prompt's length; embeddings are counted
    as products.

    Args:
        config: The model.
        images: Images in the prompt.
        moe_layers: How many layers are counted as routed; by default as many as the model has. The published
            script leaves four out.
    """
    decoder = config.decoder
    h, length = decoder.hidden_size, config.num_image_tokens * images
    experts = decoder.moe_layers
    dense = [
        layer.feed_forward.intermediate_size
        for i, layer in enumerate(decoder.layers)
        if layer.kind == "mamba" and i not in experts
    ]
    routed = [_paper_mlp(h, e.intermediate_size, experts=e.top_k) for e in experts.values()]
    routed = routed if moe_layers is None else routed[:moe_layers]
    mamba = sum(_paper_mlp(h, inner) for inner in dense) + sum(routed)
    mamba += _PAPER_SCAN * (len(dense) + len(routed))
    attention = sum(
        _paper_attention(h, mixer.num_heads, length)
        + _paper_mlp(h, decoder.layers[i].feed_forward.intermediate_size)
        for i, mixer in decoder.attention_layers.items()
    )
    positions = 2 * h * (length + 2) + 2 * h + (_LAYER_NORM + _DROPOUT) * h
    head = 2 * h * decoder.vocab_size + (_SOFTMAX + 2) * decoder.vocab_size
    projection = 2 * h * h + (2 + _ACTIVATION + _LAYER_NORM) * h
    per_token = mamba + positions + head + projection
    return float(length * per_token + _PAPER_LENGTH * attention)


def _paper_mlp(h: int, inner: int, *, experts: int = 1) -> int:
    elementwise = (_ACTIVATION + 1) * inner + (2 + _DROPOUT + _LAYER_NORM) * h
    return experts * 4 * h * inner + elementwise


def _paper_attention(h: int, heads: int, length: int) -> int:
    projections = 8 * h * h + (5 + _DROPOUT + _LAYER_NORM) * h
    scores = 4 * h * length + (_SOFTMAX + _DROPOUT + 1) * heads * length
    return projections + scores
