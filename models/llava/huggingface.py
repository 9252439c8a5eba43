"""transformers' config.json: `text_config` and `vision_config` within one object.

Each of the two may list only what differs from the defaults of its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longllava_trt.models.clip import CLIP, read_vision_config
from longllava_trt.models.config_reader import ConfigReader, located
from longllava_trt.models.llama_layers import LLAMA, MISTRAL, read_llama
from longllava_trt.models.llava.keys import LlavaKeys, SpecialIds, read_dtype
from longllava_trt.models.llava.pinpoints import read_pinpoints
from longllava_trt.models.spec import ConnectorSpec, ImageSpec, VisionSpec
from longllava_trt.models.towers import TOWERS

__all__ = ["MODEL_TYPES", "read_huggingface"]

MODEL_TYPES = ("llava", "llava_next")

_DECODERS = {"llama": LLAMA, "mistral": MISTRAL}
_HARMLESS = ("image_seq_length", "vocab_size", "use_image_newline_parameter")
_DEFAULT_TOWER = "vit-l-14-336"
"""Tower of a file without `vision_config`."""
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Default of transformers' class."""


def read_huggingface(
    raw: Mapping[str, Any], where: str, *, ignored_keys: Iterable[str] = ()
) -> tuple[LlavaKeys, VisionSpec]:
    """Read and check all keys.

    Args:
        raw: Content of config.json.
        where: Beginning of errors.
        ignored_keys: Unknown keys to accept; those in `text_config` with that prefix.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    reader = ConfigReader(raw)
    model_type = reader.one_of("model_type", MODEL_TYPES)
    is_next = model_type == "llava_next"
    text, vision = reader.nested("text_config"), reader.nested("vision_config")
    kind = text.one_of("model_type", tuple(_DECODERS), "llama", why="another kind of decoder")
    decoder = read_llama(text, _DECODERS[kind])
    if "tie_word_embeddings" in reader:
        decoder = decoder._replace(
            tie_embeddings=reader.flag("tie_word_embeddings", default=False)
            or decoder.tie_embeddings
        )
    # without the object the class has a default tower, with an empty one other defaults
    whole = "vision_config" in reader
    tower = read_vision_config(vision, CLIP) if whole else {}
    ids = _read_ids(reader, text)
    reader.harmless(_HARMLESS)
    reader.one_of("projector_hidden_act", ("gelu",), "gelu")
    bias = reader.flag("multimodal_projector_bias", default=True)
    strategy = reader.one_of("vision_feature_select_strategy", ("default", "full"), "default")
    layers = _read_layers(reader)
    token = reader.whole(
        "image_token_id", reader.whole("image_token_index", 32000, least=0), least=0
    )
    pinpoints = read_pinpoints(reader, _PINPOINTS, "[height, width]") if is_next else ()
    dtype = read_dtype(reader, text)
    reader.finish(where, ignored_keys=ignored_keys)
    with located(where):
        images = ImageSpec(
            aspect_ratio="anyres" if is_next else "square",
            pinpoints=tuple((width, height) for height, width in pinpoints),
            merge="spatial_unpad" if is_next else "flat",
            token_id=token,
        )
        keys = LlavaKeys(
            model_type=model_type,
            decoder=decoder,
            is_mistral=kind == "mistral",
            feature_layers=layers,
            keep_class_token=strategy == "full",
            connector=ConnectorSpec(num_layers=2, bias=bias),
            images=images,
            ids=ids,
            torch_dtype=dtype,
        )
        return keys, VisionSpec(**tower) if whole else TOWERS[_DEFAULT_TOWER]


def _read_ids(reader: ConfigReader, text: ConfigReader) -> SpecialIds:
    """Return ids of the whole model; where it is silent, those of its decoder."""

    def ids(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        inner = text.token_ids(key, default)
        return reader.token_ids(key) if key in reader else inner

    bos, pad = ids("bos_token_id", (1,)), ids("pad_token_id", ())
    eos = ids("eos_token_id", (2,))
    return SpecialIds(bos=next(iter(bos), None), eos=eos, pad=next(iter(pad), None))


def _read_layers(reader: ConfigReader) -> tuple[int, ...]:
    """Return the hidden states that are the feature, one or more."""
    found = reader.value("vision_feature_layer", -2)
    layers = found if isinstance(found, list) else [found]
    if not layers or any(type(layer) is not int for layer in layers):
        reader.refuse("vision_feature_layer", "a whole number or a list of them", found)
        return (-2,)
    return tuple(layers)
