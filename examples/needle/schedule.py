"""The learning rate of every stage."""

from __future__ import annotations

import math

__all__ = ["warm_cosine"]

_WARMUP = 100
_FLOOR = 0.05


def warm_cosine(step: int, *, steps: int, peak: float) -> float:
    """Return a step's learning rate: up to the peak in a straight line, then down along a cosine."""
    warmup = min(_WARMUP, steps // 5)
    if step < warmup:
        return peak * (step + 1) / warmup
    turn = math.pi * (step - warmup) / (steps - warmup)
    return peak * (_FLOOR + (1 - _FLOOR) * (1 + math.cos(turn)) / 2)
