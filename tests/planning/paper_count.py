"""Count of operations in the paper's table, for the footnote in docs/planning.md."""

from __future__ import annotations

from longllava_trt.models.llava_jamba.config import DecoderConfig

__all__ = ["paper_flops"]

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
