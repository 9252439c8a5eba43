"""Which tensors the kernels read, and which of the checkpoint's tensors each is made of.

What is multiplied with the same input is one matrix: query, key and value; gate and up; an expert after another. In
memory that is no more than one tensor behind another. Knows neither files nor PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from longllava_trt.core.manifest import MoeQuant
from longllava_trt.models.llava_jamba.config import DecoderConfig, LongLLaVAConfig, VisionConfig
from longllava_trt.models.llava_jamba.weights import VISION_PREFIX
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP

__all__ = ["FusedWeight", "plan_decoder", "plan_stage", "total_bytes"]

_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


@dataclass(frozen=True, slots=True)
class FusedWeight:
    """One tensor on the device."""

    name: str
    """`layers.3.qkv`: what the model's functions call it."""
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]
    """Of the checkpoint, one behind another."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return math.prod(self.shape) * _ITEMSIZE[self.dtype]


def total_bytes(plan: tuple[FusedWeight, ...]) -> int:
    """Return the bytes of all weights."""
    return sum(weight.nbytes for weight in plan)


def plan_decoder(config: DecoderConfig, dtype: str, quant: MoeQuant) -> tuple[FusedWeight, ...]:
    """Return the decoder's weights.

    Args:
        config: The decoder.
        dtype: Of arithmetic, and of all that is not quantised.
        quant: How experts are stored.
    """
    hidden = config.hidden_size
    plan = []
    for layer in range(config.num_hidden_layers):
        parts = _layer(config, layer, dtype, quant)
        plan += [
            FusedWeight(
                f"layers.{layer}.{name}",
                shape,
                kind,
                tuple(f"model.layers.{layer}.{part}" for part in made_of),
            )
            for name, shape, kind, made_of in parts
        ]
    plan += [
        FusedWeight("final_norm", (hidden,), dtype, ("model.final_layernorm.weight",)),
        FusedWeight("lm_head", (config.vocab_size, hidden), dtype, ("lm_head.weight",)),
    ]
    return tuple(plan)


def plan_stage(stage: str, config: LongLLaVAConfig, dtype: str) -> tuple[FusedWeight, ...]:
    """Return the weights of `vision`, `projector` or `embed`."""
    if stage == "vision":
        return tuple(_vision(config.vision, dtype))
    decoder = config.decoder
    hidden = decoder.hidden_size
    if stage == "embed":
        name = "model.embed_tokens.weight"
        return (FusedWeight("embed_tokens", (decoder.vocab_size, hidden), dtype, (name,)),)
    sizes = {0: (hidden, config.vision.hidden_size), 2: (hidden, hidden)}
    plan = []
    for number, shape in sizes.items():
        name = f"model.mm_projector.{number}"
        plan += [
            FusedWeight(f"fc{number}", shape, dtype, (f"{name}.weight",)),
            FusedWeight(f"fc{number}_bias", shape[:1], dtype, (f"{name}.bias",)),
        ]
    return tuple(plan)


Part = tuple[str, tuple[int, ...], str, tuple[str, ...]]


def _layer(config: DecoderConfig, layer: int, dtype: str, quant: MoeQuant) -> Iterator[Part]:
    hidden = config.hidden_size
    yield "input_norm", (hidden,), dtype, ("input_layernorm.weight",)
    yield "ff_norm", (hidden,), dtype, ("pre_moe_layernorm.weight",)
    if config.layer_kinds[layer] == "attention":
        rows = hidden + 2 * config.num_key_value_heads * config.head_dim
        qkv = tuple(f"self_attn.{name}_proj.weight" for name in ("q", "k", "v"))
        yield "qkv", (rows, hidden), dtype, qkv
        yield "o_proj", (hidden, hidden), dtype, ("self_attn.o_proj.weight",)
    else:
        yield from _mamba(config, dtype)
    if config.is_moe_layer(layer):
        yield "router", (config.num_experts, hidden), dtype, ("moe.router.weight",)
        yield from _experts(config, dtype, quant)
        return
    inner = config.intermediate_size
    gate_up = tuple(f"moe.experts.0.{name}_proj.weight" for name in ("gate", "up"))
    yield "gate_up", (2 * inner, hidden), dtype, gate_up
    yield "down", (hidden, inner), dtype, ("moe.experts.0.down_proj.weight",)


def _mamba(config: DecoderConfig, dtype: str) -> Iterator[Part]:
    hidden, inner = config.hidden_size, config.d_inner
    rank, state = config.mamba_dt_rank, config.mamba_d_state
    shapes = {
        "in_proj": ((2 * inner, hidden), "in_proj.weight"),
        "conv_weight": ((inner, 1, config.mamba_d_conv), "conv1d.weight"),
        "conv_bias": ((inner,), "conv1d.bias"),
        "x_proj": ((rank + 2 * state, inner), "x_proj.weight"),
        "dt_norm": ((rank,), "dt_layernorm.weight"),
        "B_norm": ((state,), "B_layernorm.weight"),
        "C_norm": ((state,), "C_layernorm.weight"),
        "dt_proj": ((inner, rank), "dt_proj.weight"),
        "dt_bias": ((inner,), "dt_proj.bias"),
        "A_log": ((inner, state), "A_log"),
        "D": ((inner,), "D"),
        "out_proj": ((hidden, inner), "out_proj.weight"),
    }
    for name, (shape, part) in shapes.items():
        yield name, shape, dtype, (f"mamba.{part}",)


def _experts(config: DecoderConfig, dtype: str, quant: MoeQuant) -> Iterator[Part]:
    count, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
    sizes = {"gate_up": (2 * inner, hidden), "down": (hidden, inner)}
    for matrix, (rows, columns) in sizes.items():
        if quant == "none":
            kinds = matrix.split("_")
            parts = tuple(
                f"moe.experts.{expert}.{kind}_proj.weight"
                for expert in range(count)
                for kind in kinds
            )
            yield f"experts_{matrix}", (count, rows, columns), dtype, parts
            continue
        is_int8 = quant == "w8a16"
        codes = columns if is_int8 else columns // 2
        scales = () if is_int8 else (-(-columns // GROUP),)
        kind = "int8" if is_int8 else "uint8"
        name = f"moe.experts.{matrix}"
        yield f"experts_{matrix}", (count, rows, codes), kind, (name,)
        yield f"experts_{matrix}_scales", (count, rows, *scales), "float32", (f"{name}_scales",)


def _vision(config: VisionConfig, dtype: str) -> Iterator[FusedWeight]:
    width, inner, patch = config.hidden_size, config.intermediate_size, config.patch_size

    def made(name: str, shape: tuple[int, ...], *parts: str) -> FusedWeight:
        return FusedWeight(name, shape, dtype, tuple(VISION_PREFIX + part for part in parts))

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
