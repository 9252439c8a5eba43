"""Content of a LLaVA's config.json, in either format, and the model that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from longllava_trt.core.dtypes import FLOAT_NAMES
from longllava_trt.models.config_reader import ConfigReader
from longllava_trt.models.llama_layers import LlamaKeys
from longllava_trt.models.spec import ConnectorSpec, ImageSpec, ModelSpec, VisionSpec

__all__ = ["LlavaKeys", "SpecialIds", "read_dtype", "title_of"]

_HD_TOWER = 224
"""LLaVA-1.5-HD is the algorithm of 1.6 with a tower of this size."""


class SpecialIds(NamedTuple):
    """Ids of the tokenizer's special tokens."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


class LlavaKeys(NamedTuple):
    """Content of a config.json without the sizes of the tower, which may be in another file."""

    model_type: str
    decoder: LlamaKeys
    is_mistral: bool
    feature_layers: tuple[int, ...]
    keep_class_token: bool
    connector: ConnectorSpec
    images: ImageSpec
    ids: SpecialIds
    torch_dtype: str

    def model(self, vision: VisionSpec, source: Mapping[str, Any]) -> ModelSpec:
        """Return the model; `ConfigError` if its parts do not fit one another.

        Args:
            vision: The tower.
            source: Content of config.json.
        """
        vision = replace(
            vision,
            feature_layers=self.feature_layers,
            keep_class_token=self.keep_class_token,
        )
        return ModelSpec(
            model_type=self.model_type,
            title=title_of(vision, self.connector, self.images, is_mistral=self.is_mistral),
            decoder=self.decoder.decoder(),
            vision=vision,
            connector=self.connector,
            images=self.images,
            torch_dtype=self.torch_dtype,
            bos_token_id=self.ids.bos,
            eos_token_ids=self.ids.eos,
            pad_token_id=self.ids.pad,
            max_positions=self.decoder.max_positions,
            source=source,
        )


def title_of(
    vision: VisionSpec, connector: ConnectorSpec, images: ImageSpec, *, is_mistral: bool
) -> str:
    """Return which model of the series it is (section 1 of the series' specification)."""
    if images.aspect_ratio == "anyres":
        name = "LLaVA-1.5-HD" if vision.image_size == _HD_TOWER else "LLaVA-1.6"
    else:
        name = "LLaVA-1" if connector.num_layers == 1 else "LLaVA-1.5"
    return f"{name} (Mistral)" if is_mistral else name


def read_dtype(*readers: ConfigReader) -> str:
    """Return the dtype that the first of some objects names; float16 if none does."""
    named = [
        reader.one_of(key, FLOAT_NAMES)
        for reader in readers
        for key in ("torch_dtype", "dtype")
        if key in reader
    ]
    return str(next(iter(named), "float16"))
