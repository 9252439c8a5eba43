"""Where the quantised experts of a layer lie: one safetensors file a layer, known before it is written.

A file holds the layer's experts stacked as the kernels read them, codes first, since scales are known last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import WEIGHTS_FOLDER, MoeQuant, WeightRecord
from longllava_trt.models.parameters import packed_experts_path
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP

__all__ = [
    "EXPERT_FORMATS",
    "ExpertFormat",
    "check_format",
    "expert_file",
    "expert_header",
    "expert_records",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFormat:
    """How codes and scales are laid out."""

    weight_format: str
    """The operator's word for it."""
    dtype: str
    """Of stored codes."""
    codes_per_byte: int
    group: int | None
    """Columns that share a scale; None if all of a row do."""

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one matrix's codes and scales."""
        groups = () if self.group is None else (-(-columns // self.group),)
        return (rows, columns // self.codes_per_byte), (rows, *groups)


EXPERT_FORMATS: Mapping[MoeQuant, ExpertFormat] = {
    "w8a16": ExpertFormat(weight_format="int8", dtype="int8", codes_per_byte=1, group=None),
    "w4a16": ExpertFormat(weight_format="int4", dtype="uint8", codes_per_byte=2, group=GROUP),
}
_ITEMSIZE = {"int8": 1, "uint8": 1, "float32": 4}
_WORDS = {"int8": "I8", "uint8": "U8", "float32": "F32"}
_COLUMNS_OF_INT4 = 32
"""The kernels read rows of int4 in blocks of so many."""


def check_format(config: ModelSpec, quant: MoeQuant) -> None:
    """Raise `InputError` if a model's experts cannot be stored like that."""
    routed = config.decoder.moe_layers.values()
    if not routed:
        raise InputError(
            f"export: {quant} is for routed experts, and this model has none; export it without --moe-quant"
        )
    hidden = config.decoder.hidden_size
    for inner in {experts.intermediate_size for experts in routed} if quant == "w4a16" else ():
        if not (hidden % _COLUMNS_OF_INT4 or inner % _COLUMNS_OF_INT4):
            continue
        raise InputError(
            f"export: w4a16 needs hidden_size and intermediate_size to be multiples of {_COLUMNS_OF_INT4}, got "
            f"{hidden} and {inner}; use w8a16"
        )


def expert_file(layer: int) -> str:
    """Return the path in the bundle of a layer's experts."""
    return f"{WEIGHTS_FOLDER}/experts-layer-{layer:03}.safetensors"


def expert_records(config: ModelSpec, layer: int, quant: MoeQuant) -> dict[str, WeightRecord]:
    """Return the weight map of a layer's experts: gate_up, down, and the scales of both, in the file's order."""
    tensors = _tensors(config, layer, quant)
    offset = len(expert_header(config, layer, quant))
    records = {}
    for name, (shape, dtype) in tensors.items():
        nbytes = math.prod(shape) * _ITEMSIZE[dtype]
        records[name] = WeightRecord(
            file=expert_file(layer),
            offset=offset,
            nbytes=nbytes,
            shape=shape,
            dtype=dtype,
            transform=quant,
        )
        offset += nbytes
    return records


def expert_header(config: ModelSpec, layer: int, quant: MoeQuant) -> bytes:
    """Return what a layer's file begins with."""
    header, end = {}, 0
    for name, (shape, dtype) in _tensors(config, layer, quant).items():
        begin, end = end, end + math.prod(shape) * _ITEMSIZE[dtype]
        header[name] = {"dtype": _WORDS[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # the data starts at a multiple of 64, for whoever maps it
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _tensors(
    config: ModelSpec, layer: int, quant: MoeQuant
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype by name, as the operator's inputs are called."""
    layout, experts = EXPERT_FORMATS[quant], config.decoder.moe_layers[layer]
    count, inner, hidden = (
        experts.num_experts,
        experts.intermediate_size,
        config.decoder.hidden_size,
    )
    (gate_up, gate_up_scales), (down, down_scales) = (
        layout.shapes(2 * inner, hidden),
        layout.shapes(hidden, inner),
    )
    tensors = {
        "gate_up": ((count, *gate_up), layout.dtype),
        "down": ((count, *down), layout.dtype),
        "gate_up_scales": ((count, *gate_up_scales), "float32"),
        "down_scales": ((count, *down_scales), "float32"),
    }
    name = family_of(config).tensor_name
    return {name(packed_experts_path(layer, part)): tensor for part, tensor in tensors.items()}
