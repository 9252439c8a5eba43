"""LLaVA: a CLIP tower, one or more linear layers, Llama or Mistral."""

from __future__ import annotations

from longllava_trt.models.family import CheckpointFormat, ModelFamily
from longllava_trt.models.llava.chat import CHAT, read_chat
from longllava_trt.models.llava.config import read_config, read_decoder
from longllava_trt.models.llava.files import (
    huggingface_files,
    huggingface_tensors,
    huggingface_tokens,
    original_files,
    original_tensors,
    original_tokens,
)
from longllava_trt.models.llava.presets import PRESETS, PUBLISHED
from longllava_trt.models.llava.weights import (
    canonical_name,
    is_tolerated,
    stored_parts,
    tensor_name,
)

__all__ = ["FAMILY"]

FAMILY = ModelFamily(
    model_type="llava_llama",
    other_model_types=("llava", "llava_mistral", "llava_next"),
    title="LLaVA",
    read_config=read_config,
    read_decoder=read_decoder,
    tensor_name=tensor_name,
    canonical_name=canonical_name,
    stored_parts=stored_parts,
    is_tolerated=is_tolerated,
    formats={
        "original": CheckpointFormat(
            config_files=original_files, stored=original_tensors, added_tokens=original_tokens
        ),
        "huggingface": CheckpointFormat(
            config_files=huggingface_files,
            stored=huggingface_tensors,
            added_tokens=huggingface_tokens,
        ),
    },
    chat=CHAT,
    read_chat=read_chat,
    presets=PRESETS,
    published_presets=PUBLISHED,
)
