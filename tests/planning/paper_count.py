"""Count of operations in the paper's table, for the footnote in docs/planning.md."""

from __future__ import annotations

from longllava_trt.models.spec import ModelSpec

__all__ = ["paper_flops"]

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
