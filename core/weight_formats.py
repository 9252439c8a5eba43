"""Table of the formats of experts' weights: as in the checkpoint, or as codes with scales.

A weight is its code times its scale. `plugins_trt/kernels/sparse_moe_formats.py` makes codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "CODEC_NAMES",
    "GROUP",
    "MOE_QUANTS",
    "QUANTISED",
    "WEIGHT_FORMATS",
    "MoeQuant",
    "WeightFormat",
]

MoeQuant = Literal["none", "w8a16", "w4a16"]
"""Name of a format, for the bits of a weight and those of an activation."""

GROUP = 128
"""Columns that share a scale of int4; the last group of a row may be shorter."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Format of the matrices of routed experts."""

    name: MoeQuant
    """Name in manifests, on the command line and in Python."""
    codec: str
    """Name in the operator's attribute `weight_format` and in the names of kernels."""
    dtype: str | None = None
    """Dtype of stored codes; None if weights keep their own dtype."""
    codes_per_byte: int = 1
    top_code: int = 0
    """Largest magnitude of a code."""
    group: int | None = None
    """Columns that share a scale; None if a row has one scale."""
    columns_multiple: int = 1
    """Divisor of the columns of a matrix: the kernels read rows in blocks of this length."""
    summary: str = ""
    """Description in the command line's help."""

    @property
    def is_quantised(self) -> bool:
        """Whether codes and scales are stored instead of weights."""
        return self.dtype is not None

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of one matrix's codes and of its scales, which are float32."""
        groups = () if self.group is None else (-(-columns // self.group),)
        return (rows, columns // self.codes_per_byte), (rows, *groups)

    def nbytes(self, rows: int, columns: int, *, itemsize: int) -> int:
        """Return the bytes of one matrix with its scales.

        Args:
            rows: Rows of the matrix.
            columns: Columns of the matrix.
            itemsize: Bytes of a weight that is not quantised.
        """
        if not self.is_quantised:
            return rows * columns * itemsize
        scales = 1 if self.group is None else -(-columns // self.group)
        return rows * (columns // self.codes_per_byte + 4 * scales)


_TABLE = (
    WeightFormat("none", "none", summary="as in the checkpoint"),
    WeightFormat("w8a16", "int8", "int8", top_code=127, summary="int8 with a scale a row"),
    WeightFormat(
        "w4a16",
        "int4",
        "uint8",
        codes_per_byte=2,
        top_code=7,
        group=GROUP,
        columns_multiple=32,
        summary=f"int4 with a scale a group of {GROUP} columns",
    ),
)

WEIGHT_FORMATS: Mapping[MoeQuant, WeightFormat] = MappingProxyType({f.name: f for f in _TABLE})
"""Formats by name, the largest first."""
MOE_QUANTS: tuple[MoeQuant, ...] = tuple(WEIGHT_FORMATS)
QUANTISED: tuple[MoeQuant, ...] = tuple(f.name for f in _TABLE if f.is_quantised)
CODEC_NAMES: tuple[str, ...] = tuple(f.codec for f in _TABLE)
