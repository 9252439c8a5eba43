"""Arithmetic of every stage, counted twice: as it is, and as the paper counted it.

A multiplication and an addition are two operations. The honest count takes every matrix product, the
convolution, the scan and attention; norms and activations are left out, below one in a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig

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
    """Count so many tokens after so many others; returns what is linear in them, and attention."""
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


_SOFTMAX, _ACTIVATION, _DROPOUT, _LAYER_NORM = 5, 8, 4, 5
_PAPER_LENGTH = 4096
_PAPER_SCAN = 9 * 256 * 16


def paper_flops(config: DecoderConfig, *, images: int, moe_layers: int | None = None) -> float:
    """Count as the paper's table does, which is not what the model computes.

    It is the counter that was written for ELECTRA (Clark et al. 2020), with a block for Mamba: an MLP of two
    matrices instead of three, no Mamba projection, a scan of 256 channels, no vision tower, 144 positions an image
    and no text; attention blocks are counted for 4096 tokens whatever the prompt's length; embeddings are counted
    as products.

    Args:
        config: The decoder.
        images: Images in the prompt.
        moe_layers: How many layers are counted as routed; by default as many as the model has. The published
            script leaves four out.
    """
    h, length = config.hidden_size, 144 * images
    routed = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    dense = config.layer_kinds.count("mamba") - routed
    routed = routed if moe_layers is None else moe_layers
    mlp = _paper_mlp(config, experts=1)
    moe = _paper_mlp(config, experts=config.num_experts_per_tok)
    mamba = dense * (mlp + _PAPER_SCAN) + routed * (moe + _PAPER_SCAN)
    attention = config.layer_kinds.count("attention") * (_paper_attention(config, length) + mlp)
    positions = 2 * h * (length + 2) + 2 * h + (_LAYER_NORM + _DROPOUT) * h
    head = 2 * h * config.vocab_size + (_SOFTMAX + 2) * config.vocab_size
    projection = 2 * h * h + (2 + _ACTIVATION + _LAYER_NORM) * h
    per_token = mamba + positions + head + projection
    return float(length * per_token + _PAPER_LENGTH * attention)


def _paper_mlp(config: DecoderConfig, *, experts: int) -> int:
    h, inner = config.hidden_size, config.intermediate_size
    elementwise = (_ACTIVATION + 1) * inner + (2 + _DROPOUT + _LAYER_NORM) * h
    return experts * 4 * h * inner + elementwise


def _paper_attention(config: DecoderConfig, length: int) -> int:
    h, heads = config.hidden_size, config.num_attention_heads
    projections = 8 * h * h + (5 + _DROPOUT + _LAYER_NORM) * h
    scores = 4 * h * length + (_SOFTMAX + _DROPOUT + 1) * heads * length
    return projections + scores
