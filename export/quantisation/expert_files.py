"""Layout of a layer's quantised experts: one safetensors file a layer, known before it is written.

A file has the layer's experts stacked as the kernels read them: first codes, then scales, which are
known last.
"""

from __future__ import annotations

from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import WEIGHTS_FOLDER, WeightRecord
from longllava_trt.core.safetensors_writer import SafetensorsLayout, layout_safetensors
from longllava_trt.core.weight_formats import WEIGHT_FORMATS, MoeQuant
from longllava_trt.models.parameters import packed_experts_path
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec

__all__ = [
    "check_format",
    "expert_file",
    "expert_layout",
    "expert_records",
]


def check_format(config: ModelSpec, quant: MoeQuant) -> None:
    """Raise `InputError` if a model's experts cannot be stored in a format."""
    routed = config.decoder.moe_layers.values()
    if not routed:
        raise InputError(
            f"export: {quant} is for routed experts, and this model has none; export it without --moe-quant"
        )
    hidden, multiple = config.decoder.hidden_size, WEIGHT_FORMATS[quant].columns_multiple
    for inner in {experts.intermediate_size for experts in routed}:
        if not (hidden % multiple or inner % multiple):
            continue
        raise InputError(
            f"export: {quant} needs hidden_size and intermediate_size to be multiples of {multiple}, got "
            f"{hidden} and {inner}; use w8a16"
        )


def expert_file(layer: int) -> str:
    """Return the path in the bundle of a layer's experts."""
    return f"{WEIGHTS_FOLDER}/experts-layer-{layer:03}.safetensors"


def expert_records(config: ModelSpec, layer: int, quant: MoeQuant) -> dict[str, WeightRecord]:
    """Return the weight map of a layer's experts, in the file's order: gate_up, down, scales."""
    tensors = _tensors(config, layer, quant)
    ranges = expert_layout(config, layer, quant).ranges
    return {
        name: WeightRecord(
            file=expert_file(layer),
            offset=ranges[name].offset,
            nbytes=ranges[name].nbytes,
            shape=shape,
            dtype=dtype,
            transform=quant,
        )
        for name, (shape, dtype) in tensors.items()
    }


def expert_layout(config: ModelSpec, layer: int, quant: MoeQuant) -> SafetensorsLayout:
    """Return the layout of a layer's file."""
    # 64: a cache line, for programs that map the file
    return layout_safetensors(expert_file(layer), _tensors(config, layer, quant), alignment=64)


def _tensors(
    config: ModelSpec, layer: int, quant: MoeQuant
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype by the names of the operator's inputs."""
    format_, experts = WEIGHT_FORMATS[quant], config.decoder.moe_layers[layer]
    assert format_.dtype, "Bug: only quantised experts have files of their own"
    count, inner, hidden = (
        experts.num_experts,
        experts.intermediate_size,
        config.decoder.hidden_size,
    )
    (gate_up, gate_up_scales), (down, down_scales) = (
        format_.shapes(2 * inner, hidden),
        format_.shapes(hidden, inner),
    )
    tensors = {
        "gate_up": ((count, *gate_up), format_.dtype),
        "down": ((count, *down), format_.dtype),
        "gate_up_scales": ((count, *gate_up_scales), "float32"),
        "down_scales": ((count, *down_scales), "float32"),
    }
    name = family_of(config).tensor_name
    return {name(packed_experts_path(layer, part)): tensor for part, tensor in tensors.items()}
