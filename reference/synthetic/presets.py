"""Sizes of synthetic checkpoints, by name: the presets of every family."""

from __future__ import annotations

from dataclasses import replace

from longllava_trt.core.errors import InputError
from longllava_trt.models.registry import find_preset
from longllava_trt.models.spec import ModelSpec

__all__ = ["preset_config"]


def preset_config(preset: str, layers: int | None = None) -> ModelSpec:
    """Return a preset, or only its first decoder layers.

    Raises:
        InputError: If there is no such preset, or it has fewer layers.
    """
    spec = find_preset(preset)
    most = spec.decoder.num_layers
    if layers is None:
        return spec
    if not 1 <= layers <= most:
        raise InputError(f"synth: layers of preset {preset} must be from 1 to {most}, got {layers}")
    return replace(spec, decoder=replace(spec.decoder, layers=spec.decoder.layers[:layers]))
