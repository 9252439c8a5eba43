"""Names of presets and formats of all families, for the command line's help, without any import."""

from __future__ import annotations

__all__ = ["FORMAT_NAMES", "PRESET_NAMES"]

PRESET_NAMES = (
    "tiny",
    "tiny-dense",
    "mini",
    "9b",
    "53b",
    "llava-1-tiny",
    "llava-1.5-tiny",
    "llava-1.5-hd-tiny",
    "llava-1.6-tiny",
    "llava-1.6-mistral-tiny",
    "llava-1.5-7b",
    "llava-1.5-13b",
    "llava-1.6-mistral-7b",
    "jamba-tiny",
    "jamba-3b",
)

FORMAT_NAMES = ("original", "huggingface", "per-expert", "stacked")
"""Formats of checkpoints, where a family has several."""
