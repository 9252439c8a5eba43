"""Jamba's config.json, read strictly; only what differs from its class's defaults need be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from longllava_trt.core.dtypes import FLOAT_NAMES
from longllava_trt.core.errors import InputError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.config_reader import ConfigReader
from longllava_trt.models.jamba_layers import JAMBA_KEYS, jamba_decoder
from longllava_trt.models.registry import CONFIG_FILE, WHOSE_CONFIG
from longllava_trt.models.spec import DecoderSpec, ModelSpec

__all__ = ["MODEL_TYPE", "model_from_keys", "read_config", "read_decoder"]

MODEL_TYPE = "jamba"

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "rms_norm_eps": 1e-6,
}
"""Defaults of transformers' class."""

_HARMLESS = (
    """
    attention_dropout attn_implementation calc_logits_for_entire_prompt layers_block_type
    layers_num_experts layer_types max_position_embeddings n_ctx num_logits_to_keep
    output_router_logits router_aux_loss_coef use_associative_scan use_mamba_kernels use_mambapy
    """
).split()


def read_config(
    folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Read and check a checkpoint's config.json.

    Args:
        folder: Checkpoint or bundle.
        vision_tower: Must be None.
        ignored_keys: Unknown keys to accept.

    Raises:
        ConfigError: Lists every key that is unknown or has a value that is not supported.
        InputError: If a vision tower is given.
    """
    if vision_tower is not None:
        raise InputError(f"{folder}: a text model has no vision tower; leave out --vision-tower")
    return _model(folder, ignored_keys)


def read_decoder(folder: Path, *, ignored_keys: Iterable[str] = ()) -> DecoderSpec:
    """Read and check config.json, and return the decoder."""
    return _model(folder, ignored_keys).decoder


def model_from_keys(
    raw: Mapping[str, Any], *, where: str = CONFIG_FILE, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Return the model that a config.json describes.

    Args:
        raw: Content of config.json.
        where: Beginning of errors.
        ignored_keys: Unknown keys to accept.
    """
    reader = ConfigReader(raw)
    reader.one_of("model_type", (MODEL_TYPE,))
    reader.one_of("hidden_act", ("silu",), "silu")
    reader.one_of("mamba_conv_bias", (True,), True)
    reader.one_of("mamba_proj_bias", (False,), False)
    reader.one_of("mamba_inner_layernorms", (True,), True)
    reader.absent("sliding_window", why="attention within a window is not supported")
    reader.absent("rope_theta", why="the model has no positions")
    reader.harmless((*_HARMLESS, *JAMBA_KEYS))
    tied = reader.flag("tie_word_embeddings", default=False)
    bos = reader.token_ids("bos_token_id", (1,))
    eos = reader.token_ids("eos_token_id", (2,))
    pad = reader.token_ids("pad_token_id", (0,))
    dtypes = [reader.one_of(key, FLOAT_NAMES) for key in ("torch_dtype", "dtype") if key in reader]
    longest = reader.whole("max_position_embeddings", 262144)
    reader.finish(where, ignored_keys=ignored_keys)
    stated = {key: raw[key] for key in JAMBA_KEYS if raw.get(key) is not None}
    return ModelSpec(
        model_type=MODEL_TYPE,
        decoder=jamba_decoder({**_DEFAULTS, **stated}, where, tied=tied),
        torch_dtype=str(next(iter(dtypes), "bfloat16")),
        bos_token_id=next(iter(bos), None),
        eos_token_ids=eos,
        pad_token_id=next(iter(pad), None),
        max_positions=longest,
        source=raw,
    )


def _model(folder: Path, ignored_keys: Iterable[str]) -> ModelSpec:
    path = folder / CONFIG_FILE
    raw = read_json_object(path, whose=WHOSE_CONFIG)
    return model_from_keys(raw, where=str(path), ignored_keys=ignored_keys)
