"""The experts that a bundle holds quantised, as the reference would hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from longllava_trt.core.manifest import Manifest, WeightRecord
from longllava_trt.core.weight_formats import QUANTISED, WEIGHT_FORMATS
from longllava_trt.export.quantisation.expert_files import expert_records
from longllava_trt.models.parameters import expert_path
from longllava_trt.models.registry import family_of
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import CODECS
from longllava_trt.reference.model import LongLLaVA

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "StoredMatrix",
    "quantised_inputs",
    "stored_matrices",
    "with_dequantised_experts",
]

Arrays: TypeAlias = "dict[str, NDArray[Any]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """One matrix of one expert, as the bundle holds it."""

    layer: int
    name: str
    """The checkpoint's."""
    values: NDArray[np.float32]
    """Dequantised. [rows, columns]."""
    scales: NDArray[np.float32]
    """[rows, groups]"""
    group: int
    """Columns that share a scale; the last group may be shorter."""


def stored_matrices(model: LongLLaVA, bundle: Path, manifest: Manifest) -> Iterator[StoredMatrix]:
    """Yield every quantised matrix."""
    quant, tensor_name = manifest.moe_quant, family_of(model.config).tensor_name
    format_ = WEIGHT_FORMATS[quant]
    codec = CODECS[format_.codec]
    for layer, experts in model.config.decoder.moe_layers.items():
        gate_up, down, gate_up_scales, down_scales = (
            _read(bundle, manifest.weights[name])
            for name in expert_records(model.config, layer, quant)
        )
        for expert in range(experts.num_experts):
            for kinds, codes, scales in (
                (("gate", "up"), gate_up[expert], gate_up_scales[expert]),
                (("down",), down[expert], down_scales[expert]),
            ):
                values = codec.dequantise(codes, scales)
                halves = (np.split(array, len(kinds)) for array in (values, scales))
                for kind, part, part_scales in zip(kinds, *halves, strict=True):
                    yield StoredMatrix(
                        layer=layer,
                        name=tensor_name(expert_path(layer, expert, kind)),
                        values=part,
                        scales=part_scales.reshape(len(part), -1),
                        group=format_.group or part.shape[1],
                    )


def with_dequantised_experts(model: LongLLaVA, bundle: Path, manifest: Manifest) -> LongLLaVA:
    """Return a model with the bundle's experts; it shares all other weights with the one given."""
    tensors = model.named_tensors()
    for matrix in stored_matrices(model, bundle, manifest):
        tensors[matrix.name] = torch.from_numpy(matrix.values.copy())
    return LongLLaVA.from_tensors(model.config, tensors)


def quantised_inputs(bundle: Path, manifest: Manifest, names: Sequence[str]) -> Arrays:
    """Return the stored codes and scales among the inputs of a node, by name."""
    records = {name: manifest.weights[name] for name in names if name in manifest.weights}
    return {n: _read(bundle, r) for n, r in records.items() if r.transform in QUANTISED}


def _read(bundle: Path, record: WeightRecord) -> NDArray[Any]:
    return np.memmap(
        bundle / record.file,
        np.dtype(record.dtype),
        mode="r",
        offset=record.offset,
        shape=record.shape,
    )
