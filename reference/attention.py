"""Grouped-query attention, with rotary positions or without any (spec 2.3; 3 of the series)."""

from __future__ import annotations

from torch import Tensor, nn

from longllava_trt.models.spec import AttentionSpec
from longllava_trt.reference.cache import AttentionState
from longllava_trt.reference.operators import Operators

__all__ = ["CausalSelfAttention"]


class CausalSelfAttention(nn.Module):
    """Causal self-attention.

    Beside Mamba layers it has no positions: they alone know the order of tokens. Keys are cached
    after their rotation, so that going on needs nothing but the number of cached positions.

    Args:
        spec: The mixer.
        hidden_size: Width of the residual stream.
    """

    def __init__(self, spec: AttentionSpec, hidden_size: int) -> None:
        super().__init__()
        self.head_dim, self.rotary = spec.head_dim, spec.rotary
        self.q_proj = nn.Linear(hidden_size, spec.q_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, spec.kv_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, spec.kv_size, bias=False)
        self.o_proj = nn.Linear(spec.q_size, hidden_size, bias=False)

    def forward(
        self, x: Tensor, state: AttentionState, ops: Operators
    ) -> tuple[Tensor, AttentionState]:
        """Attend from x [batch, seq_len, hidden_size], T, to itself and the cache.

        Returns:
            Output like x, and the cache with the new keys and values.
        """
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.rotary is not None:
            q, k = ops.rotate(q, k, state, self.rotary)
        y, state = ops.causal_attention(q, k, v, state)
        return self.o_proj(y.transpose(1, 2).flatten(2)), state
