"""Cosines and sines of rotary positions, for every position that a cache has room for."""

from __future__ import annotations

from functools import lru_cache

import torch

from longllava_trt.models.rotary import inverse_frequencies
from longllava_trt.models.spec import DecoderSpec, RotarySpec

__all__ = ["rotary_table_bytes", "rotary_tables"]


@lru_cache(maxsize=8)
def rotary_tables(
    rotary: RotarySpec, head_dim: int, positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tables that all layers of all sequences share; made once, before any capture.

    Args:
        rotary: Base and scaling.
        head_dim: Width of a head.
        positions: Room of the caches.
        device: Where they are needed.

    Returns:
        Cosines and sines. Each [positions, head_dim / 2], float32.
    """
    frequencies = torch.from_numpy(inverse_frequencies(rotary, head_dim))
    # on the host: a device's own cosine may differ in the last bit
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(device), angles.sin().to(device)


def rotary_table_bytes(spec: DecoderSpec, positions: int) -> int:
    """Return the size of a decoder's tables."""
    mixers = spec.attention_layers.values()
    sizes = {m.rotary: m.head_dim for m in mixers if m.rotary is not None}
    return sum(4 * positions * head_dim for head_dim in sizes.values())
