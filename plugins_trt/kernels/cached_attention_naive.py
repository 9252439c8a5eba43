"""CachedAttention in plain PyTorch, to check the kernels: one sequence and head after another.

Has the signature of `cached_attention.cached_attention`. Slow and obvious, float32 inside, on any
device; it reads the lengths from the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["naive_cached_attention"]


def naive_cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    past_len: Tensor,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute `cached_attention` and write the caches; arguments and result as there."""
    (batch, seq_len, heads, head_dim), kv_heads = q.shape, k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    y = q.new_empty(q.shape)
    for row, past in zip(range(batch), past_len.tolist(), strict=True):
        end = past + seq_len
        queries, new_keys = q[row], k[row]
        if cos is not None and sin is not None:
            queries, new_keys = (
                _rotate(x, cos[past:end], sin[past:end]) for x in (queries, new_keys)
            )
        key_cache[row, :, past:end] = new_keys.transpose(0, 1)
        value_cache[row, :, past:end] = v[row].transpose(0, 1)
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            keys = key_cache[row, kv_head, :end].float()
            scores = queries[:, head].float() @ keys.T * scale
            # query t sees positions up to past + t
            hidden = scores.new_ones(scores.shape).triu(past + 1).bool()
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            y[row, :, head] = (weights @ value_cache[row, kv_head, :end].float()).to(y.dtype)
    return y


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn element i with element i + head_dim / 2. x: [seq_len, heads, head_dim], T."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = x.new_empty(x.shape)
    turned[..., : first.shape[-1]] = first * cos - second * sin
    turned[..., first.shape[-1] :] = second * cos + first * sin
    return turned
