"""A family that nobody published: one attention layer, a dense feed-forward, a small tower, and names of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.core.manifest import VISION_CONFIG_FOLDER
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.clip import preprocessor_config
from longllava_trt.models.family import CheckpointFormat, ModelFamily
from longllava_trt.models.image_policy import Box, TileGrid, ViewTexts
from longllava_trt.models.spec import (
    AttentionSpec,
    ConnectorSpec,
    DecoderSpec,
    DenseSpec,
    LayerSpec,
    ModelSpec,
    VisionSpec,
)

MODEL_TYPE = "toy"
_PREFIX = "toy:"
_KEYS = {"model_type", "num_attention_heads", "width", "torch_dtype"}


def model_of(keys: dict[str, Any]) -> ModelSpec:
    """Make the model of a config.json with very few keys."""
    width, heads = keys["width"], keys["num_attention_heads"]
    attention = AttentionSpec(num_heads=heads, num_kv_heads=heads // 2, head_dim=width // heads)
    layer = LayerSpec(mixer=attention, feed_forward=DenseSpec(intermediate_size=3 * width // 2))
    return ModelSpec(
        model_type=MODEL_TYPE,
        decoder=DecoderSpec(
            layers=(layer,), vocab_size=512, hidden_size=width, rms_norm_eps=1e-5
        ),
        # unlike LongLLaVA's in everything: the last layer, the exact GELU, one linear layer, no pooling
        vision=VisionSpec(
            hidden_size=24, intermediate_size=40, num_layers=2, num_heads=3, image_size=42,
            activation="gelu", feature_layers=(-1,),
        ),
        connector=ConnectorSpec(num_layers=1),
        torch_dtype=keys["torch_dtype"],
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=0,
        source=keys,
    )  # fmt: skip


def read_config(
    folder: Path, *, vision_tower: Path | None = None, ignored_keys: Iterable[str] = ()
) -> ModelSpec:
    """Read config.json; there is no other tower, but for the bundle's own record of it."""
    raw = read_json_object(folder / "config.json", whose="a toy has it")
    if raw.keys() != _KEYS or vision_tower not in {None, folder / VISION_CONFIG_FOLDER}:
        raise ConfigError(f"{folder}: must have the keys {sorted(_KEYS)} and no tower of its own")
    return model_of(raw)


def read_decoder(folder: Path, *, ignored_keys: Iterable[str] = ()) -> DecoderSpec:
    """Read the decoder."""
    return read_config(folder).decoder


def config_files(spec: ModelSpec, dtype: str) -> dict[str, str]:
    """Return the files beside the weights."""
    files: dict[str, dict[str, Any]] = {
        "config.json": {**spec.source, "torch_dtype": dtype},
        "preprocessor_config.json": preprocessor_config(spec.require_vision()),
    }
    return {name: json.dumps(value) for name, value in files.items()}


class WholeImage:
    """Shows a still in high resolution as an overview and one tile: itself."""

    background = (0, 0, 0)

    def grid(self, size: tuple[int, int], *, image_size: int) -> TileGrid:
        """Return one tile whatever the size."""
        return TileGrid(1, 1)

    def boxes(self, size: tuple[int, int], *, image_size: int) -> list[Box]:
        """Return the image's own box."""
        return [(0, 0, *size)]

    def texts(self, grid: TileGrid, chat: ChatFormat) -> ViewTexts:
        """Return no text at all."""
        return ViewTexts(("", ""), "")


CHAT = ChatFormat(
    user_role="USER: ", assistant_role="ASSISTANT: ", separator="\n", image_placeholder="<pic>"
)

_FORMATS = {"toy": replace(CHAT, name="toy"), "loud": replace(CHAT, name="loud", separator="!\n")}


def read_chat(folder: Path, prompt_format: str | None = None) -> ChatFormat:
    """Return the format by its name; a checkpoint's own is `toy`."""
    kept = ChatFile.read(folder)
    name = prompt_format or (kept.prompt_format if kept else "toy")
    if name not in _FORMATS:
        raise InputError(f"run: prompt_format must be one of {', '.join(_FORMATS)}, got '{name}'")
    return _FORMATS[name]


FAMILY = ModelFamily(
    model_type=MODEL_TYPE,
    title="Toy",
    read_config=read_config,
    read_decoder=read_decoder,
    tensor_name=lambda path: _PREFIX + path,
    canonical_name=lambda key: key,
    stored_parts=lambda key, _: (key,),
    is_tolerated=lambda _: False,
    formats={"toy": CheckpointFormat(config_files=config_files)},
    chat=CHAT,
    read_chat=read_chat,
    image_policy=WholeImage(),
    presets={
        "toy": model_of(
            {
                "model_type": MODEL_TYPE,
                "num_attention_heads": 4,
                "width": 64,
                "torch_dtype": "float32",
            }
        )
    },
)
