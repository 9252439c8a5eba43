"""The original's config.json: Llama's keys and the image side's flat beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from longllava_trt.models.config_reader import ConfigReader, located
from longllava_trt.models.llama_layers import LLAMA, MISTRAL, read_llama
from longllava_trt.models.llava.keys import LlavaKeys, SpecialIds, read_dtype
from longllava_trt.models.llava.pinpoints import read_pinpoints
from longllava_trt.models.spec import ConnectorSpec, ImageSpec

__all__ = ["MODEL_TYPES", "Tower", "read_original"]

MODEL_TYPES = ("llava_llama", "llava", "llava_mistral")

_HARMLESS = (
    """
    freeze_mm_mlp_adapter freeze_mm_vision_resampler image_crop_resolution image_split_resolution
    max_sequence_length mm_projector_lr mm_use_im_patch_token mm_vision_tower_lr
    tokenizer_model_max_length tokenizer_padding_side tune_mm_mlp_adapter
    tune_mm_vision_resampler unfreeze_mm_vision_tower
    """
).split()
"""Keys without influence on inference, or about training."""

_REFUSED = {
    "mm_resampler_type": "a resampler between tower and projector is not supported",
    "s2": "a tower that sees an image at several sizes (S2) is not supported",
    "s2_scales": "a tower that sees an image at several sizes (S2) is not supported",
    "sep_image_conv_front": "images in a turn of their own are not supported",
    "mm_use_s2": "a tower that sees an image at several sizes (S2) is not supported",
}

_OPTIONAL = {"rope_theta", "max_position_embeddings", "num_key_value_heads", "sliding_window"}
_MLP = re.compile(r"mlp([1-9])x_gelu")
_PROJECTORS = "'linear' or 'mlpNx_gelu'"


class Tower(NamedTuple):
    """Facts about the tower in the file."""

    name: str
    """Its folder in the checkpoint or elsewhere, or its name on the hub."""
    hidden_size: int
    """Its width; the projector was made for it."""


def read_original(
    raw: Mapping[str, Any], where: str, *, ignored_keys: Iterable[str] = ()
) -> tuple[LlavaKeys, Tower]:
    """Read and check all keys.

    Args:
        raw: Content of config.json.
        where: Beginning of errors.
        ignored_keys: Unknown keys to accept.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    reader = ConfigReader(raw)
    model_type = reader.one_of("model_type", MODEL_TYPES)
    is_mistral = model_type == "llava_mistral"
    defaults = MISTRAL if is_mistral else LLAMA
    # the file was written whole: only a few keys came later than some of the files
    decoder = read_llama(reader, {k: v for k, v in defaults.items() if k in _OPTIONAL})
    ids = SpecialIds(
        bos=next(iter(reader.token_ids("bos_token_id", (1,))), None),
        eos=reader.token_ids("eos_token_id", (2,)),
        pad=next(iter(reader.token_ids("pad_token_id")), None),
    )
    reader.harmless(_HARMLESS)
    for key, why in _REFUSED.items():
        reader.absent(key, why=why)
    reader.one_of("use_mm_proj", (True,), True, why="a model without a projector")
    tower = reader.text("mm_vision_tower", "the name or folder of the vision tower")
    feature = reader.whole("mm_vision_select_layer", least=-10_000)
    selected = reader.one_of("mm_vision_select_feature", ("patch", "cls_patch"), "patch")
    width = reader.whole("mm_hidden_size")
    connector = _read_connector(reader)
    aspect = reader.one_of("image_aspect_ratio", ("square", "pad", "anyres"), "square")
    merge = reader.one_of("mm_patch_merge_type", ("flat", "spatial", "spatial_unpad"), "flat")
    pinpoints = read_pinpoints(reader, [], "[width, height]")
    if aspect == "anyres" and not pinpoints and "image_grid_pinpoints" not in reader:
        reader.fault("missing key 'image_grid_pinpoints', which 'anyres' chooses from")
    start_end = reader.flag("mm_use_im_start_end", default=False)
    dtype = read_dtype(reader)
    reader.finish(where, ignored_keys=ignored_keys)
    with located(where):
        images = ImageSpec(
            aspect_ratio=aspect,
            pinpoints=pinpoints if aspect == "anyres" else (),
            merge=merge,
            use_start_end=start_end,
        )
        keys = LlavaKeys(
            model_type=model_type,
            decoder=decoder,
            is_mistral=is_mistral,
            feature_layers=(feature,),
            keep_class_token=selected == "cls_patch",
            connector=ConnectorSpec(num_layers=connector),
            images=images,
            ids=ids,
            torch_dtype=dtype,
        )
    return keys, Tower(tower, width)


def _read_connector(reader: ConfigReader) -> int:
    """Return the number of linear layers; without the key there is one."""
    kind = reader.value("mm_projector_type", "linear")
    if kind == "linear":
        return 1
    match = _MLP.fullmatch(kind) if isinstance(kind, str) else None
    if match is None:
        reader.refuse("mm_projector_type", _PROJECTORS, kind)
        return 1
    return int(match[1])
