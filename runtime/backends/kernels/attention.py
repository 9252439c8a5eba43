"""CachedAttention in PyTorch's own operators, until the Triton kernel of that name is merged.

Looks at the whole capacity, so it is slow; does not ask the device for lengths, so it can be captured.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["cached_attention"]


def cached_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    past_len: torch.Tensor,
) -> torch.Tensor:
    """Append k and v to the caches, then attend from q to all they hold.

    Args:
        q: [batch, seq_len, heads, head_dim], T.
        k: [batch, seq_len, kv_heads, head_dim], T.
        v: Likewise.
        key_cache: Written in place. [batch, kv_heads, capacity, head_dim], T.
        value_cache: Likewise.
        past_len: Positions held before. [batch], int32.

    Returns:
        y: [batch, seq_len, heads, head_dim], T.
    """
    batch, seq_len = q.shape[:2]
    places = past_len.long()[:, None] + torch.arange(seq_len, device=q.device)
    rows = torch.arange(batch, device=q.device)[:, None]
    key_cache.transpose(1, 2)[rows, places] = k
    value_cache.transpose(1, 2)[rows, places] = v
    columns = torch.arange(key_cache.shape[2], device=q.device)
    seen = columns <= places[:, None, :, None]
    return scaled_dot_product_attention(
        q.transpose(1, 2), key_cache, value_cache, attn_mask=seen, enable_gqa=True
    ).transpose(1, 2)
