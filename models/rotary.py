"""Rotary positions: the angle per position of each pair of a head.

Each step is rounded to float32 as PyTorch's formula does it, and exactly, so that every machine
gets the same numbers; PyTorch's own power may differ in the last bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from longllava_trt.models.spec import RotarySpec

__all__ = ["inverse_frequencies"]

Array = npt.NDArray[np.float32]


def inverse_frequencies(rotary: RotarySpec, head_dim: int) -> Array:
    """Return the angle that one position adds to pair j, theta ** (-2 j / head_dim), scaled.

    Args:
        rotary: Base and scaling.
        head_dim: Even width of a head.

    Returns:
        [head_dim / 2], float32.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(rotary.theta), exponents.astype(np.float64))
    plain: Array = np.float32(1) / powers.astype(np.float32)
    if rotary.scaling == "linear":
        return plain / np.float32(rotary.factor)
    return _llama3(plain, rotary) if rotary.scaling == "llama3" else plain


def _llama3(plain: Array, rotary: RotarySpec) -> Array:
    """Slow the long waves down, keep the short ones, and go from one to the other in between.

    Args:
        plain: Angles before scaling. [head_dim / 2], float32.
        rotary: Factors, and the context that the model was first trained for.

    Returns:
        Array like ``plain``.
    """
    low, high = np.float32(rotary.low_freq_factor), np.float32(rotary.high_freq_factor)
    context = np.float32(rotary.original_max_positions)
    length = np.float32(2 * math.pi) / plain
    slow = plain / np.float32(rotary.factor)
    share = (context / length - low) / (high - low)
    between = (1 - share) * slow + share * plain
    scaled: Array = np.where(length > context / low, slow, between)
    return np.where(length < context / high, plain, scaled)
