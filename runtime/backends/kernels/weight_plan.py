"""Tensors that the kernels read, and the checkpoint's tensors that each is made of.

Matrices that are multiplied with the same input become one: query, key and value; gate and up; all
experts. In memory they just lie one behind another. Knows neither files nor PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.weight_formats import WEIGHT_FORMATS, MoeQuant
from longllava_trt.models.parameters import (
    EMBEDDING,
    EXPERT_MATRICES,
    HEAD,
    IMAGE_NEWLINE,
    PROJECTOR,
    VISION,
    expert_path,
    packed_experts_path,
    router_path,
)
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import (
    AttentionSpec,
    ConnectorSpec,
    DenseSpec,
    ExpertsSpec,
    LayerSpec,
    MambaSpec,
    ModelSpec,
    VisionSpec,
)

__all__ = ["FusedWeight", "plan_decoder", "plan_stage", "total_bytes"]


@dataclass(frozen=True, slots=True)
class FusedWeight:
    """One tensor on the device."""

    name: str
    """Name in the model's functions, such as `layers.3.qkv`."""
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]
    """Names of the checkpoint's tensors, in their order in memory."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def total_bytes(plan: tuple[FusedWeight, ...]) -> int:
    """Return the bytes of all weights."""
    return sum(weight.nbytes for weight in plan)


def plan_decoder(spec: ModelSpec, dtype: str, quant: MoeQuant) -> tuple[FusedWeight, ...]:
    """Return the decoder's weights.

    Args:
        spec: The model.
        dtype: Dtype of arithmetic and of everything that is not quantised.
        quant: Format of the experts.
    """
    decoder = spec.decoder
    hidden = decoder.hidden_size
    plan = [
        FusedWeight(f"layers.{number}.{name}", shape, kind, made_of)
        for number, layer in enumerate(decoder.layers)
        for name, shape, kind, made_of in _layer(layer, number, hidden, dtype, quant)
    ]
    head = EMBEDDING if decoder.tie_embeddings else HEAD
    plan += [
        FusedWeight("final_norm", (hidden,), dtype, ("final_norm.weight",)),
        FusedWeight("lm_head", (decoder.vocab_size, hidden), dtype, (head,)),
    ]
    return _as_stored(spec, plan)


def plan_stage(stage: str, spec: ModelSpec, dtype: str) -> tuple[FusedWeight, ...]:
    """Return the weights of `vision`, `projector` or `embed`."""
    if stage == "vision":
        return _as_stored(spec, _vision(spec.require_vision(), dtype))
    if stage == "embed":
        shape = (spec.decoder.vocab_size, spec.decoder.hidden_size)
        return _as_stored(spec, [FusedWeight("embed_tokens", shape, dtype, (EMBEDDING,))])
    width, hidden = spec.require_vision().feature_size, spec.decoder.hidden_size
    plan = [*_projector(spec.require_connector(), width, hidden, dtype)]
    if spec.images.has_newline:
        plan.append(FusedWeight(IMAGE_NEWLINE, (hidden,), dtype, (IMAGE_NEWLINE,)))
    return _as_stored(spec, plan)


def _as_stored(spec: ModelSpec, plan: Iterable[FusedWeight]) -> tuple[FusedWeight, ...]:
    """Name the parts as the family's checkpoints do."""
    name = family_of(spec).tensor_name
    return tuple(replace(w, parts=tuple(name(path) for path in w.parts)) for w in plan)


Part = tuple[str, tuple[int, ...], str, tuple[str, ...]]
"""Name, shape, dtype, and the paths of its parts."""


def _layer(
    layer: LayerSpec, number: int, hidden: int, dtype: str, quant: MoeQuant
) -> Iterator[Part]:
    place = f"layers.{number}."
    yield "input_norm", (hidden,), dtype, (f"{place}mixer_norm.weight",)
    yield "ff_norm", (hidden,), dtype, (f"{place}feed_forward_norm.weight",)
    mixer, forward = layer.mixer, layer.feed_forward
    if isinstance(mixer, AttentionSpec):
        yield from _attention(mixer, f"{place}attention.", hidden, dtype)
    else:
        yield from _mamba(mixer, f"{place}mamba.", hidden, dtype)
    if isinstance(forward, ExpertsSpec):
        yield "router", (forward.num_experts, hidden), dtype, (router_path(number),)
        yield from _experts(forward, number, hidden, dtype, quant)
    else:
        yield from _dense(forward, f"{place}feed_forward.", hidden, dtype)


def _attention(spec: AttentionSpec, place: str, hidden: int, dtype: str) -> Iterator[Part]:
    qkv = tuple(f"{place}{name}_proj.weight" for name in ("q", "k", "v"))
    yield "qkv", (spec.q_size + 2 * spec.kv_size, hidden), dtype, qkv
    yield "o_proj", (hidden, spec.q_size), dtype, (f"{place}o_proj.weight",)


def _dense(spec: DenseSpec, place: str, hidden: int, dtype: str) -> Iterator[Part]:
    inner = spec.intermediate_size
    gate_up = tuple(f"{place}{name}.weight" for name in ("gate", "up"))
    yield "gate_up", (2 * inner, hidden), dtype, gate_up
    yield "down", (hidden, inner), dtype, (f"{place}down.weight",)


def _mamba(spec: MambaSpec, place: str, hidden: int, dtype: str) -> Iterator[Part]:
    inner, rank, state = spec.d_inner, spec.dt_rank, spec.d_state
    shapes = {
        "in_proj": ((2 * inner, hidden), "in_proj.weight"),
        "conv_weight": ((inner, 1, spec.d_conv), "conv1d.weight"),
        "conv_bias": ((inner,), "conv1d.bias"),
        "x_proj": ((rank + 2 * state, inner), "x_proj.weight"),
        "dt_norm": ((rank,), "dt_norm.weight"),
        "B_norm": ((state,), "B_norm.weight"),
        "C_norm": ((state,), "C_norm.weight"),
        "dt_proj": ((inner, rank), "dt_proj.weight"),
        "dt_bias": ((inner,), "dt_proj.bias"),
        "A_log": ((inner, state), "A_log"),
        "D": ((inner,), "D"),
        "out_proj": ((hidden, inner), "out_proj.weight"),
    }
    for name, (shape, part) in shapes.items():
        yield name, shape, dtype, (f"{place}{part}",)


def _experts(
    spec: ExpertsSpec, layer: int, hidden: int, dtype: str, quant: MoeQuant
) -> Iterator[Part]:
    count, inner = spec.num_experts, spec.intermediate_size
    sizes = {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}
    for matrix, (rows, columns) in sizes.items():
        if quant == "none":
            kinds = [name for name in EXPERT_MATRICES if name in matrix.split("_")]
            parts = tuple(
                expert_path(layer, expert, kind) for expert in range(count) for kind in kinds
            )
            yield f"experts_{matrix}", (count, rows, columns), dtype, parts
            continue
        form = WEIGHT_FORMATS[quant]
        assert form.dtype is not None, "Bug: all formats but 'none' store codes"
        codes, scales = form.shapes(rows, columns)
        path = packed_experts_path(layer, matrix)
        yield f"experts_{matrix}", (count, *codes), form.dtype, (path,)
        yield f"experts_{matrix}_scales", (count, *scales), "float32", (f"{path}_scales",)


def _projector(spec: ConnectorSpec, width: int, hidden: int, dtype: str) -> Iterator[FusedWeight]:
    for layer in range(spec.num_layers):
        path, columns = f"{PROJECTOR}{2 * layer}", hidden if layer else width
        yield FusedWeight(f"fc{layer}", (hidden, columns), dtype, (f"{path}.weight",))
        if spec.bias:
            yield FusedWeight(f"fc{layer}_bias", (hidden,), dtype, (f"{path}.bias",))


def _vision(config: VisionSpec, dtype: str) -> Iterator[FusedWeight]:
    width, inner, patch = config.hidden_size, config.intermediate_size, config.patch_size

    def made(name: str, shape: tuple[int, ...], *parts: str) -> FusedWeight:
        return FusedWeight(name, shape, dtype, tuple(VISION + part for part in parts))

    def linear(name: str, shape: tuple[int, ...], *parts: str) -> Iterator[FusedWeight]:
        yield made(name, shape, *(f"{part}.weight" for part in parts))
        yield made(f"{name}_bias", shape[:1], *(f"{part}.bias" for part in parts))

    yield made("class_embedding", (width,), "embeddings.class_embedding")
    yield made("patches", (width, 3 * patch * patch), "embeddings.patch_embedding.weight")
    positions = (config.num_patches + 1, width)
    yield made("positions", positions, "embeddings.position_embedding.weight")
    yield from linear("pre_norm", (width,), "pre_layrnorm")
    for layer in range(config.num_run_layers):
        ours, theirs = f"layers.{layer}.", f"encoder.layers.{layer}."
        heads = [f"{theirs}self_attn.{name}_proj" for name in ("q", "k", "v")]
        yield from linear(f"{ours}norm1", (width,), f"{theirs}layer_norm1")
        yield from linear(f"{ours}qkv", (3 * width, width), *heads)
        yield from linear(f"{ours}out", (width, width), f"{theirs}self_attn.out_proj")
        yield from linear(f"{ours}norm2", (width,), f"{theirs}layer_norm2")
        yield from linear(f"{ours}fc1", (inner, width), f"{theirs}mlp.fc1")
        yield from linear(f"{ours}fc2", (width, inner), f"{theirs}mlp.fc2")
