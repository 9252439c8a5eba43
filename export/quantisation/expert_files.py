"""Where the quantised experts of a layer lie: one safetensors file a layer, known before it is written.

A file holds the layer's experts stacked as the kernels read them, codes first, since scales are known last.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import WEIGHTS_FOLDER, MoeQuant, WeightRecord
from longllava_trt.models.llava_jamba.config import DecoderConfig
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
_COLUMNS_OF_INT4 = 32
"""The kernels read rows of int4 in blocks of so many."""


def check_format(config: DecoderConfig, quant: MoeQuant) -> None:
    """Raise `InputError` if a model's experts cannot be stored like that."""
    if config.num_experts == 1:
        raise InputError(
            f"export: {quant} is for routed experts, and this model has none; export it without --moe-quant"
        )
    sizes = (config.hidden_size, config.intermediate_size)
    if quant == "w4a16" and any(size % _COLUMNS_OF_INT4 for size in sizes):
        raise InputError(
            f"export: w4a16 needs hidden_size and intermediate_size to be multiples of {_COLUMNS_OF_INT4}, got "
            f"{sizes[0]} and {sizes[1]}; use w8a16"
        )


def expert_file(layer: int) -> str:
    """Return the path in the bundle of a layer's experts."""
    return f"{WEIGHTS_FOLDER}/experts-layer-{layer:03}.safetensors"


def expert_records(config: DecoderConfig, layer: int, quant: MoeQuant) -> dict[str, WeightRecord]:
    """Return the weight map of a layer's experts: gate_up, down, and the scales of both, in the file's order."""
    tensors = _tensors(config, layer, quant)
    offset = len(expert_header(config, layer, quant))
    records = {}
    for name, (shape, dtype) in tensors.items():
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
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


def expert_header(config: DecoderConfig, layer: int, quant: MoeQuant) -> bytes:
    """Return what a layer's file begins with."""
    header, end = {}, 0
    for name, (shape, dtype) in _tensors(config, layer, quant).items():
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {
            "dtype": DTYPES[dtype].safetensors,
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # the data starts at a multiple of 64, for whoever maps it
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _tensors(
    config: DecoderConfig, layer: int, quant: MoeQuant
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype by name, as the operator's inputs are called."""
    layout, experts = EXPERT_FORMATS[quant], config.num_experts
    hidden, inner = config.hidden_size, config.intermediate_size
    (gate_up, gate_up_scales), (down, down_scales) = (
        layout.shapes(2 * inner, hidden),
        layout.shapes(hidden, inner),
    )
    prefix = f"model.layers.{layer}.moe.experts."
    return {
        f"{prefix}gate_up": ((experts, *gate_up), layout.dtype),
        f"{prefix}down": ((experts, *down), layout.dtype),
        f"{prefix}gate_up_scales": ((experts, *gate_up_scales), "float32"),
        f"{prefix}down_scales": ((experts, *down_scales), "float32"),
    }
