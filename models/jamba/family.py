"""Jamba, text alone: a bundle has the stages `embed` and `decoder`."""

from __future__ import annotations

from longllava_trt.models.family import CheckpointFormat, ModelFamily
from longllava_trt.models.jamba.chat import CHAT, read_chat
from longllava_trt.models.jamba.config import MODEL_TYPE, read_config, read_decoder
from longllava_trt.models.jamba.presets import PRESETS, PUBLISHED, config_files
from longllava_trt.models.jamba.weights import (
    canonical_name,
    is_tolerated,
    stacked_tensors,
    stored_parts,
    tensor_name,
)

__all__ = ["FAMILY"]

FAMILY = ModelFamily(
    model_type=MODEL_TYPE,
    title="Jamba",
    read_config=read_config,
    read_decoder=read_decoder,
    tensor_name=tensor_name,
    canonical_name=canonical_name,
    stored_parts=stored_parts,
    is_tolerated=is_tolerated,
    formats={
        "per-expert": CheckpointFormat(config_files=config_files),
        "stacked": CheckpointFormat(config_files=config_files, stored=stacked_tensors),
    },
    chat=CHAT,
    read_chat=read_chat,
    presets=PRESETS,
    published_presets=PUBLISHED,
)
