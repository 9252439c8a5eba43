"""Rotary positions (spec 3 of the series): half-split pairs, angles in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from longllava_trt.models.rotary import inverse_frequencies
from longllava_trt.models.spec import RotarySpec

__all__ = ["rotary_tables", "rotate_halves"]


def rotary_tables(
    positions: Tensor, rotary: RotarySpec, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each position's angles.

    Args:
        positions: Indices in the whole sequence, images included. [..., L], int64.
        rotary: Base and scaling.
        head_dim: Width of a head.
        dtype: Dtype of the results; the angles are float32.

    Returns:
        Two tensors [..., L, head_dim / 2], T.
    """
    frequencies = torch.from_numpy(inverse_frequencies(rotary, head_dim)).to(positions.device)
    angles = positions.float()[..., None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate each pair (j, j + head_dim / 2) of a head by its angle.

    Args:
        x: [..., L, head_dim], T.
        cosine: [L, head_dim / 2], T.
        sine: Like ``cosine``.

    Returns:
        Tensor like x.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * cosine - second * sine, second * cosine + first * sine],
        dim=-1,
    )
