"""Sizes of synthetic LLaVA checkpoints: small ones for tests, and the published ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longllava_trt.models.llama_layers import LlamaKeys
from longllava_trt.models.llava.files import original_config
from longllava_trt.models.llava.keys import LlavaKeys, SpecialIds
from longllava_trt.models.spec import ConnectorSpec, ImageSpec, ModelSpec, RotarySpec, VisionSpec
from longllava_trt.models.towers import TOWERS

__all__ = ["PRESETS", "PUBLISHED", "compose"]

_TINY = LlamaKeys(
    # the tokenizer's 512, and room for three tokens about images
    vocab_size=515,
    hidden_size=64,
    intermediate_size=160,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    rms_norm_eps=1e-5,
    tie_embeddings=False,
    max_positions=4096,
    rotary=RotarySpec(),
)
_7B = _TINY._replace(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
)
_13B = _7B._replace(
    hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40, num_kv_heads=40
)
_MISTRAL: dict[str, Any] = {"rotary": RotarySpec(theta=1e6), "max_positions": 32768}
_MISTRAL_7B = _7B._replace(intermediate_size=14336, num_kv_heads=8, **_MISTRAL)

_TINY_224 = VisionSpec(hidden_size=32, intermediate_size=64, num_layers=4, num_heads=2, image_size=224)  # fmt: skip
_TINY_336 = replace(_TINY_224, image_size=336)

_PAD = ImageSpec(aspect_ratio="pad")
_RELEASED = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_AT_MOST_SIX = tuple(
    (_TINY_224.image_size * columns, _TINY_224.image_size * rows)
    for columns in range(1, 7)
    for rows in range(1, 6 // columns + 1)
)


def _anyres(pinpoints: tuple[tuple[int, int], ...]) -> ImageSpec:
    return ImageSpec(aspect_ratio="anyres", pinpoints=pinpoints, merge="spatial_unpad")


def compose(
    decoder: LlamaKeys,
    vision: VisionSpec,
    images: ImageSpec,
    *,
    num_linear: int = 2,
    is_mistral: bool = False,
    torch_dtype: str = "float32",
) -> ModelSpec:
    """Make a model of any size in the original's format.

    Args:
        decoder: Its numbers.
        vision: The tower.
        images: How a picture becomes rows.
        num_linear: Linear layers of the projector.
        is_mistral: Whether the decoder is Mistral's.
        torch_dtype: Dtype that its config.json names.
    """
    keys = LlavaKeys(
        model_type="llava_mistral" if is_mistral else "llava_llama",
        decoder=decoder,
        is_mistral=is_mistral,
        feature_layers=vision.feature_layers,
        keep_class_token=vision.keep_class_token,
        connector=ConnectorSpec(num_layers=num_linear),
        images=images,
        ids=SpecialIds(bos=1, eos=(2,), pad=0),
        torch_dtype=torch_dtype,
    )
    spec = keys.model(vision, {})
    return replace(spec, source=original_config(spec, torch_dtype))


PRESETS = {
    "llava-1-tiny": compose(
        _TINY, _TINY_224, ImageSpec(use_start_end=True), num_linear=1
    ),
    "llava-1.5-tiny": compose(_TINY, _TINY_336, _PAD),
    "llava-1.5-hd-tiny": compose(_TINY, _TINY_224, _anyres(_AT_MOST_SIX)),
    "llava-1.6-tiny": compose(_TINY, _TINY_336, _anyres(_RELEASED)),
    "llava-1.6-mistral-tiny": compose(
        _TINY._replace(num_kv_heads=2, **_MISTRAL), _TINY_336, _anyres(_RELEASED), is_mistral=True
    ),
    "llava-1.5-7b": compose(_7B, TOWERS["vit-l-14-336"], _PAD, torch_dtype="float16"),
    "llava-1.5-13b": compose(_13B, TOWERS["vit-l-14-336"], _PAD, torch_dtype="float16"),
    "llava-1.6-mistral-7b": compose(
        _MISTRAL_7B,
        TOWERS["vit-l-14-336"],
        _anyres(_RELEASED),
        is_mistral=True,
        torch_dtype="bfloat16",
    ),
}  # fmt: skip
"""The tiny ones have every part of the models they are named after; the others are the published
sizes."""

PUBLISHED = frozenset({"llava-1.5-7b", "llava-1.5-13b", "llava-1.6-mistral-7b"})
"""Presets that are too large to be filled with random numbers by accident."""
