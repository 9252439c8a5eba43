"""Bytes on the device.

There lie weights, the carried state, and what one chunk of the prompt needs while it passes through
the widest layer. Prompts of any length pass through in chunks, so activations do not grow with the
prompt; only keys and values do.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from longllava_trt.core.dtypes import DTYPES, FLOAT_NAMES
from longllava_trt.core.errors import InputError
from longllava_trt.core.weight_formats import MOE_QUANTS, WEIGHT_FORMATS, MoeQuant
from longllava_trt.models.contracts import carried_state
from longllava_trt.models.parameters import (
    EMBEDDING,
    PROJECTOR,
    VISION,
    experts_path,
    parameter_shapes,
)
from longllava_trt.models.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    MixerSpec,
    ModelSpec,
)
from longllava_trt.plugins_trt.launch_plans.mixers import plan_selective_scan
from longllava_trt.plugins_trt.launch_plans.plan import Workspace
from longllava_trt.plugins_trt.launch_plans.sparse_moe import MoeShape, plan_workspaces

__all__ = [
    "WeightBytes",
    "activation_bytes",
    "count_weights",
    "decoder_activation_bytes",
    "kv_bytes_per_token",
    "recurrent_bytes",
    "stage_activation_bytes",
]

_PRODUCT_BYTES = 8 * 2**20
"""Bytes that TensorRT-RTX 1.7 keeps in every engine for products whose sums it divides; seen: 8.2 MB or a
multiple of it, whatever the size."""
_CONVOLUTION_BYTES = 20_480_000
"""The same for the convolution of patches; seen with `tiny` and `mini`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Weights on the device."""

    vision: int
    projector: int
    embed: int
    decoder: int
    """Weights without routed experts."""
    experts: int
    """Routed experts, with their scales."""
    experts_active: int
    """Bytes of experts that one token reads."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.vision + self.projector + self.embed + self.decoder + self.experts

    @property
    def read_per_token(self) -> int:
        """Bytes that one decode step reads: the decoder and the experts that the token visits."""
        return self.decoder + self.experts_active


def count_weights(config: ModelSpec, *, dtype: str, moe_quant: MoeQuant = "none") -> WeightBytes:
    """Count the weights that the engines take.

    Args:
        config: The model.
        dtype: Arithmetic dtype of the engines.
        moe_quant: One of `MOE_QUANTS`.

    Raises:
        InputError: If an argument is none of the known.
    """
    _require(dtype, FLOAT_NAMES, "dtype")
    _require(moe_quant, MOE_QUANTS, "moe_quant")
    itemsize = DTYPES[dtype].itemsize
    parts = dict.fromkeys(("vision", "projector", "embed", "decoder", "experts"), 0)
    routed = {experts_path(i): experts for i, experts in config.decoder.moe_layers.items()}
    active = Fraction(0)
    for path, shape in parameter_shapes(config).items():
        experts = next((e for prefix, e in routed.items() if path.startswith(prefix)), None)
        if experts is None:
            parts[_part(path)] += _stored_bytes(shape, itemsize, "none")
        else:
            nbytes = _stored_bytes(shape, itemsize, moe_quant)
            parts["experts"] += nbytes
            active += Fraction(nbytes * experts.top_k, experts.num_experts)
    return WeightBytes(**parts, experts_active=int(active))


def kv_bytes_per_token(config: DecoderSpec, *, dtype: str) -> int:
    """Return the bytes of keys and values that one position keeps."""
    return _state_bytes(config, dtype, in_place=True)


def recurrent_bytes(config: DecoderSpec, *, dtype: str) -> int:
    """Return the bytes of one sequence's conv and recurrent states; engines keep two sets."""
    return _state_bytes(config, dtype, in_place=False)


def activation_bytes(config: ModelSpec, *, dtype: str, chunk: int, vision_batch: int) -> int:
    """Return the bytes that all stages work in: each keeps its own, as its engine does.

    Args:
        config: The model.
        dtype: Arithmetic dtype.
        chunk: Positions of one decoder call.
        vision_batch: Images of one vision call.
    """
    stages = stage_activation_bytes(config, dtype=dtype, chunk=chunk, vision_batch=vision_batch)
    return sum(stages.values())


def stage_activation_bytes(
    config: ModelSpec, *, dtype: str, chunk: int, vision_batch: int
) -> dict[str, int]:
    """Return the bytes that each stage works in: its widest layer, and what TensorRT keeps for products.

    At published sizes within a tenth of what TensorRT-RTX 1.7 takes, at any within 16 MiB. Arguments
    as for `activation_bytes`.
    """
    decoder = max(
        decoder_activation_bytes(config.decoder, dtype=dtype, chunk=chunk),
        _experts_apart_bytes(config.decoder, dtype=dtype, chunk=chunk),
    )
    return {
        "vision": _vision_activation_bytes(config, dtype=dtype, images=vision_batch),
        "projector": _projector_activation_bytes(config, dtype=dtype, images=vision_batch),
        "decoder": decoder + _PRODUCT_BYTES,
    }


def decoder_activation_bytes(config: DecoderSpec, *, dtype: str, chunk: int) -> int:
    """Return the bytes used at once in the decoder's widest layer."""
    itemsize, hidden = DTYPES[dtype].itemsize, config.hidden_size
    widest = max(
        max(
            _mixer_bytes(layer.mixer, hidden, itemsize=itemsize, chunk=chunk),
            _feed_forward_bytes(layer.feed_forward, hidden, itemsize=itemsize, chunk=chunk),
        )
        for layer in set(config.layers)
    )
    return widest + 4 * config.vocab_size


def _mixer_bytes(mixer: MixerSpec, hidden: int, *, itemsize: int, chunk: int) -> int:
    if isinstance(mixer, AttentionSpec):
        return itemsize * chunk * (2 * hidden + 2 * mixer.q_size + 2 * mixer.kv_size)
    # the residual stream and its norm; both halves of in_proj, convolved half, delta and y
    _, spaces = plan_selective_scan(1, chunk, mixer.d_inner, mixer.d_state)
    return itemsize * chunk * (2 * hidden + 5 * mixer.d_inner) + _space_bytes(spaces, itemsize)


def _feed_forward_bytes(forward: FeedForwardSpec, hidden: int, *, itemsize: int, chunk: int) -> int:
    wide = forward.intermediate_size
    if not isinstance(forward, ExpertsSpec):
        return itemsize * chunk * (2 * hidden + 3 * wide)
    inputs = chunk * (3 * hidden + forward.num_experts)
    workspace = _experts_workspace(forward, hidden, itemsize=itemsize, chunk=chunk)
    return itemsize * inputs + workspace


def _experts_workspace(experts: ExpertsSpec, hidden: int, *, itemsize: int, chunk: int) -> int:
    wide = experts.intermediate_size
    shape = MoeShape(chunk, hidden, wide, experts.num_experts, experts.top_k)
    return _space_bytes(plan_workspaces(shape, itemsize=itemsize), itemsize)


def _experts_apart_bytes(config: DecoderSpec, *, dtype: str, chunk: int) -> int:
    """Return the bytes of the experts' workspace beside those of a dense layer; 0 without experts.

    TensorRT-RTX 1.7 lets no other layer take the memory of that workspace.
    """
    if not config.moe_layers:
        return 0
    itemsize, hidden = DTYPES[dtype].itemsize, config.hidden_size
    workspace = max(
        _experts_workspace(experts, hidden, itemsize=itemsize, chunk=chunk)
        for experts in config.moe_layers.values()
    )
    dense = [f.intermediate_size for f in _feed_forwards(config) if not isinstance(f, ExpertsSpec)]
    return workspace + itemsize * chunk * (2 * hidden + 2 * max(dense, default=hidden))


def _feed_forwards(config: DecoderSpec) -> set[FeedForwardSpec]:
    return {layer.feed_forward for layer in config.layers}


def _vision_activation_bytes(config: ModelSpec, *, dtype: str, images: int) -> int:
    """Return the larger of two: pixels made ready for the convolution, or a layer's feed-forward.

    Pixels are there in three channels and in four, and the feed-forward's rows before and after the
    activation, and once more.
    """
    vision, itemsize = config.vision, DTYPES[dtype].itemsize
    if vision is None:
        return 0
    pixels = 7 * vision.image_size**2 + vision.num_patches * vision.hidden_size
    wide = 3 * (vision.num_patches + 1) * vision.intermediate_size
    return max(images * itemsize * pixels + _CONVOLUTION_BYTES, images * itemsize * wide)


def _projector_activation_bytes(config: ModelSpec, *, dtype: str, images: int) -> int:
    """Return the bytes of both products' results, before and after the activation."""
    if config.vision is None:
        return 0
    rows = images * config.num_image_tokens
    return 2 * rows * config.decoder.hidden_size * DTYPES[dtype].itemsize + _PRODUCT_BYTES


def _state_bytes(config: DecoderSpec, dtype: str, *, in_place: bool) -> int:
    """Count one sequence's state that does or does not grow; what grows, for one position."""
    return sum(
        math.prod(d for d in spec.shape if isinstance(d, int)) * DTYPES[spec.dtype].itemsize
        for spec in carried_state(config, dtype)
        if ("capacity" in spec.shape) == in_place
    )


def _part(path: str) -> str:
    """Return the stage of a parameter that is no routed expert's."""
    if path.startswith(VISION):
        return "vision"
    if path.startswith(PROJECTOR):
        return "projector"
    return "embed" if path == EMBEDDING else "decoder"


def _stored_bytes(shape: tuple[int, ...], itemsize: int, quant: MoeQuant) -> int:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return WEIGHT_FORMATS[quant].nbytes(rows, columns, itemsize=itemsize)


def _space_bytes(spaces: list[Workspace], itemsize: int) -> int:
    return sum(
        math.prod(space.shape) * (itemsize if space.dtype == "T" else DTYPES[space.dtype].itemsize)
        for space in spaces
    )


def _require(value: str, known: Collection[str], name: str) -> None:
    if value not in known:
        raise InputError(f"plan: {name} must be one of {', '.join(known)}, got '{value}'")
