"""RMSNorm's parameter; the arithmetic is an operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longllava_trt.reference.operators import Operators

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale.

    Args:
        size: Length of the normalised last axis.
        eps: Added to the mean square.
    """

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        """Normalise x [..., size], T, to the same shape and dtype."""
        return ops.rms_norm(x, self.weight, self.eps)
