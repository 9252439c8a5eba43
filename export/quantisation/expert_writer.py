"""The experts of a layer, quantised block by block into one file.

Codes are written when they are made. In memory are one mapped matrix, its codes, a block of rows
for each thread, and the layer's scales.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import CheckpointError
from longllava_trt.core.manifest import QuantisationError
from longllava_trt.core.safetensors_header import TensorSource, read_tensor
from longllava_trt.core.safetensors_writer import content_of, write_safetensors
from longllava_trt.core.weight_formats import WEIGHT_FORMATS, MoeQuant
from longllava_trt.export.quantisation.expert_files import expert_layout
from longllava_trt.models.parameters import expert_path
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import CODECS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["QuantisedLayer", "quantise_layer"]

_BLOCK_ELEMENTS = 2**17
"""Size of a block: small enough for a core's cache, large enough that NumPy's calls cost little."""
_MAX_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisedLayer:
    """Result of writing."""

    sha256: str
    bytes_read: int
    """Bytes of the checkpoint's weights."""
    errors: tuple[QuantisationError, ...]
    """Errors of gate, up and down."""


class _Loss:
    """Sums over the blocks of one kind of matrix."""

    def __init__(self) -> None:
        self.squares = self.lost_squares = 0.0
        self.largest = self.largest_lost = 0.0

    def add(self, block: _Block) -> None:
        self.squares += block.squares
        self.lost_squares += block.lost_squares
        self.largest = max(self.largest, block.largest)
        self.largest_lost = max(self.largest_lost, block.largest_lost)

    def error(self, layer: int, matrix: str) -> QuantisationError:
        """Return the two relative errors; 0 if all weights are zero."""
        return QuantisationError(
            layer=layer,
            matrix=matrix,
            relative_rms=(self.lost_squares / self.squares) ** 0.5 if self.squares else 0.0,
            max_abs=self.largest_lost / self.largest if self.largest else 0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Some rows of a matrix, quantised."""

    codes: NDArray[Any]
    scales: NDArray[np.float32]
    bytes_read: int
    squares: float
    lost_squares: float
    largest: float
    largest_lost: float


def quantise_layer(
    path: Path,
    layer: int,
    *,
    config: ModelSpec,
    sources: Mapping[str, TensorSource],
    checkpoint: Path,
    quant: MoeQuant,
) -> QuantisedLayer:
    """Write a layer's file; it appears when it is complete.

    Args:
        path: File to make.
        layer: Number of a routed layer.
        config: The model.
        sources: Position of each weight, by checkpoint name.
        checkpoint: Folder that relative sources are in.
        quant: `w8a16` or `w4a16`.

    Raises:
        CheckpointError: If a weight is NaN or infinite.
    """
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    losses = {matrix: _Loss() for matrix in ("gate", "up", "down")}
    scales: list[NDArray[np.float32]] = []
    bytes_read = 0

    def content() -> Iterator[memoryview]:
        nonlocal bytes_read
        for matrix, block in _blocks(layer, config, sources, checkpoint, quant):
            yield content_of(block.codes)
            scales.append(block.scales)
            losses[matrix].add(block)
            bytes_read += block.bytes_read
        yield from map(content_of, scales)

    digest, layout = hashlib.sha256(), expert_layout(config, layer, quant)
    write_safetensors(unfinished, layout, content(), digest=digest, sync=True)
    unfinished.replace(path)
    errors = tuple(loss.error(layer, matrix) for matrix, loss in losses.items())
    return QuantisedLayer(sha256=digest.hexdigest(), bytes_read=bytes_read, errors=errors)


def _blocks(
    layer: int,
    config: ModelSpec,
    sources: Mapping[str, TensorSource],
    checkpoint: Path,
    quant: MoeQuant,
) -> Iterator[tuple[str, _Block]]:
    """Yield every block of rows with the kind of its matrix, in the file's order."""
    tensor_name = family_of(config).tensor_name
    num_experts = config.decoder.moe_layers[layer].num_experts
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for expert, matrix in _stored_order(num_experts):
            name = tensor_name(expert_path(layer, expert, matrix))
            weights = read_tensor(sources[name], checkpoint)
            for block in pool.map(partial(_quantise, quant=quant), _row_blocks(weights)):
                if not np.isfinite(block.lost_squares):
                    raise CheckpointError(
                        f"{name}: must be finite to be quantised, got NaN or infinity; fetch the checkpoint again"
                    )
                yield matrix, block


def _stored_order(num_experts: int) -> Iterator[tuple[int, str]]:
    """Yield expert and matrix in the file's order: each expert's gate and up, then each's down."""
    for expert in range(num_experts):
        yield expert, "gate"
        yield expert, "up"
    for expert in range(num_experts):
        yield expert, "down"


def _row_blocks(weights: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, _BLOCK_ELEMENTS // weights.shape[1])
    for begin in range(0, len(weights), rows):
        yield weights[begin : begin + rows]


def _quantise(rows: NDArray[Any], *, quant: MoeQuant) -> _Block:
    """Quantise rows [rows, columns], of any float dtype, and measure their errors.

    Sums are in float64 and in a fixed order.
    """
    codec = CODECS[WEIGHT_FORMATS[quant].codec]
    weights = rows.astype(np.float32)
    # values that are not finite show in the sums, whose reader reports them
    with np.errstate(invalid="ignore", over="ignore"):
        codes, scales = codec.quantise(weights)
        lost = codec.dequantise(codes, scales)
        lost -= weights
        return _Block(
            codes=codes,
            scales=scales,
            bytes_read=rows.nbytes,
            squares=float(np.square(weights).sum(dtype=np.float64)),
            lost_squares=float(np.square(lost).sum(dtype=np.float64)),
            largest=float(np.abs(weights).max()),
            largest_lost=float(np.abs(lost).max()),
        )
