"""Checks that the parts of a model's description share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from longllava_trt.core.errors import ConfigError

__all__ = ["require_divisible", "require_positive"]


def require_positive(spec: Any, where: str) -> None:
    """Check every number among a spec's fields."""
    numbers = {f.name: getattr(spec, f.name) for f in fields(spec)}
    bad = [
        f"{name}={value!r}"
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0
    ]
    if bad:
        raise ConfigError(f"{where}: must be positive: {', '.join(bad)}")


def require_divisible(whole: int, part: int, where: str) -> None:
    """Check that a width is a whole number of parts."""
    if whole % part:
        raise ConfigError(f"{where}: {whole} is not divisible by {part}")
