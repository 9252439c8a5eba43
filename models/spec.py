"""The description of a model of any family: sizes and kinds of layers, as data.

A family's reader makes a `ModelSpec` from a checkpoint's own files; all other code uses it and does
not ask for the family. The parts are in decoder_spec.py and image_spec.py, and imported from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.decoder_spec import (
    AttentionSpec,
    DecoderSpec,
    DenseSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerKind,
    LayerSpec,
    MambaSpec,
    MixerSpec,
    RotarySpec,
    check_depth,
)
from longllava_trt.models.image_spec import ConnectorSpec, ImageSpec, VisionSpec

__all__ = [
    "AttentionSpec",
    "ConnectorSpec",
    "DecoderSpec",
    "DenseSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "ImageSpec",
    "LayerKind",
    "LayerSpec",
    "MambaSpec",
    "MixerSpec",
    "ModelSpec",
    "RotarySpec",
    "VisionSpec",
    "check_depth",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole model, with the ids that a prompt needs."""

    model_type: str
    """Its family, as config.json names it."""
    decoder: DecoderSpec
    vision: VisionSpec | None = None
    """None for a text model."""
    connector: ConnectorSpec | None = None
    images: ImageSpec = field(default_factory=ImageSpec)
    """How a picture becomes rows; without meaning for a text model."""
    title: str = ""
    """Name of the model for people, such as `LLaVA-1.5`; empty if the family has but one."""
    torch_dtype: str = "bfloat16"
    """Dtype in config.json; the tensors' own dtypes are in their headers."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end an answer; the first is the usual one."""
    pad_token_id: int | None = None
    max_positions: int | None = None
    """Largest number of positions in config.json; it is only reported, and limits nothing."""
    tower: str | None = field(default=None, compare=False)
    """Folder of the tower's own checkpoint, or its name on the hub, if config.json has one."""
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The config.json this came from, unchanged."""

    def __post_init__(self) -> None:
        if (self.vision is None) != (self.connector is None):
            raise ConfigError("model: a vision tower and a connector come together or not at all")
        self._check_images()
        if self.vision is None or self.connector is None or self.connector.pooling == 1:
            return
        if self.vision.patches_per_side % self.connector.pooling or self.vision.keep_class_token:
            raise ConfigError(
                f"vision tower: image_size {self.vision.image_size} must hold an even number of patches of "
                f"{self.vision.patch_size} pixels a side, and no class token, so that 2x2 pooling is exact"
            )

    def _check_images(self) -> None:
        keeps = self.vision is not None and self.vision.keep_class_token
        if keeps and self.images.pinpoints and self.images.merge != "flat":
            raise ConfigError(
                f"images: '{self.images.merge}' makes one map of all tiles, in which a class token has no place; "
                "the feature must be the patches alone"
            )
        tile = 1 if self.vision is None else self.vision.image_size
        bad = [p for p in self.images.pinpoints if p[0] % tile or p[1] % tile]
        if bad:
            raise ConfigError(
                f"images: pinpoints must be multiples of the tower's image_size {tile}, got {bad}"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of its bundle, in the order in which data passes them."""
        text = ("embed", "decoder")
        return text if self.vision is None else ("vision", "projector", *text)

    @property
    def num_image_tokens(self) -> int:
        """Decoder positions of one image of the tower's size; 0 for a text model."""
        if self.vision is None or self.connector is None:
            return 0
        return self.vision.num_features // self.connector.pooling**2

    def require_vision(self) -> VisionSpec:
        """Return the vision tower; `ConfigError` if there is none."""
        if self.vision is None:
            raise ConfigError(f"{self.model_type}: a text model has no vision tower")
        return self.vision

    def require_connector(self) -> ConnectorSpec:
        """Return the connector; `ConfigError` if there is none."""
        if self.connector is None:
            raise ConfigError(f"{self.model_type}: a text model has no connector")
        return self.connector
