"""Feed-forwards: one SwiGLU for every token, or many experts behind a router (spec 2.5)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from longllava_trt.models.spec import ExpertsSpec, FeedForwardSpec
from longllava_trt.reference.operators import ExpertWeights, Operators

__all__ = ["Experts", "SwiGLU", "build_feed_forward"]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor, ops: Operators) -> Tensor:  # noqa: ARG002 - as a routed one is called
        """Transform x [..., hidden_size], T, to the same shape and dtype."""
        down: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return down

    @property
    def weights(self) -> ExpertWeights:
        """The three matrices."""
        return ExpertWeights(self.gate.weight, self.up.weight, self.down.weight)


class Experts(nn.Module):
    """SwiGLU experts behind a router.

    Args:
        spec: The feed-forward.
        hidden_size: Width of the residual stream.
    """

    def __init__(self, spec: ExpertsSpec, hidden_size: int) -> None:
        super().__init__()
        self.top_k = spec.top_k
        self.experts = nn.ModuleList(
            SwiGLU(hidden_size, spec.intermediate_size) for _ in range(spec.num_experts)
        )
        self.router = nn.Linear(hidden_size, spec.num_experts, bias=False)

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        """Transform x [batch, seq_len, hidden_size], T, to the same shape and dtype.

        Each token is routed by itself.
        """
        rows = x.flatten(0, 1)
        weights = [expert.weights for expert in self.experts if isinstance(expert, SwiGLU)]
        return ops.sparse_moe(rows, self.router(rows), weights, top_k=self.top_k).view_as(x)


def build_feed_forward(spec: FeedForwardSpec, hidden_size: int) -> Experts | SwiGLU:
    """Build the feed-forward of a layer's specification."""
    if isinstance(spec, ExpertsSpec):
        return Experts(spec, hidden_size)
    return SwiGLU(hidden_size, spec.intermediate_size)
