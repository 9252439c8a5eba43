"""LongLLaVA: CLIP, 2x2 pooling, a two-layer MLP, Jamba."""

from __future__ import annotations

from longllava_trt.models.family import CheckpointFormat, ModelFamily
from longllava_trt.models.llava_jamba.chat import CHAT
from longllava_trt.models.llava_jamba.config import MODEL_TYPE, read_config, read_decoder
from longllava_trt.models.llava_jamba.image_policy import IMAGE_POLICY
from longllava_trt.models.llava_jamba.presets import PRESETS, PUBLISHED, config_files
from longllava_trt.models.llava_jamba.weights import (
    canonical_name,
    is_tolerated,
    stored_parts,
    tensor_name,
)

__all__ = ["FAMILY"]

FAMILY = ModelFamily(
    model_type=MODEL_TYPE,
    title="LongLLaVA",
    read_config=read_config,
    read_decoder=read_decoder,
    tensor_name=tensor_name,
    canonical_name=canonical_name,
    stored_parts=stored_parts,
    is_tolerated=is_tolerated,
    formats={"original": CheckpointFormat(config_files=config_files)},
    chat=CHAT,
    image_policy=IMAGE_POLICY,
    presets=PRESETS,
    published_presets=PUBLISHED,
    # as published; config.json says less
    trained_context=176_000,
    # `<img>` and `</img>` are three tokens each (spec 5.8)
    positions_around_image=6,
)
