"""Feed-forwards: one SwiGLU expert, or many of them behind a router (spec 2.5).

A dense layer keeps the original's container with a single expert, so that parameter names agree.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from longllava_trt.models.llava_jamba.config import DecoderConfig
from longllava_trt.reference.operators import ExpertWeights, Operators

__all__ = ["Expert", "FeedForward"]


class Expert(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [..., hidden_size]."""
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down

    @property
    def weights(self) -> ExpertWeights:
        """The three matrices."""
        return ExpertWeights(self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class FeedForward(nn.Module):
    """A dense expert, or a mixture with a router.

    Args:
        config: The decoder.
        is_moe: Whether this layer routes among ``config.num_experts`` experts.
    """

    def __init__(self, config: DecoderConfig, *, is_moe: bool) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        count = config.num_experts if is_moe else 1
        self.experts = nn.ModuleList(Expert(config) for _ in range(count))
        if is_moe:
            self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.is_moe = is_moe

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        """Transform x [batch, seq_len, hidden_size]; tokens are routed one by one."""
        if not self.is_moe:
            dense: Tensor = self.experts[0](x)
            return dense
        rows = x.flatten(0, 1)
        weights = [expert.weights for expert in self.experts if isinstance(expert, Expert)]
        return ops.sparse_moe(rows, self.router(rows), weights, top_k=self.top_k).view_as(x)
