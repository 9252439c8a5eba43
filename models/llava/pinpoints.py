"""`image_grid_pinpoints` of a config.json: the canvases that an image in high resolution may take."""

from __future__ import annotations

import ast
from typing import Any

from longllava_trt.models.config_reader import ConfigReader

__all__ = ["read_pinpoints"]

_KEY = "image_grid_pinpoints"
_LONGEST = 60
"""Characters of a value that an error shows."""


def read_pinpoints(
    reader: ConfigReader, default: list[list[int]], form: str
) -> tuple[tuple[int, int], ...]:
    """Return the pairs as they stand, from a list or from a string that holds one.

    Args:
        reader: The object that has the key.
        default: Value if it has not.
        form: What a pair is, for the error.
    """
    found = reader.value(_KEY, default)
    pairs = _parsed(found) if isinstance(found, str) else found
    if isinstance(pairs, list | tuple) and all(map(_is_pair, pairs)):
        return tuple((first, second) for first, second in pairs)
    shown = repr(found)
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."
    reader.fault(f"'{_KEY}' must be a list of {form} in pixels, got {shown}")
    return ()


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(side) is int and side > 0 for side in value)
    )
