"""The product with a matrix of any stored format, against float64 NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from longllava_trt.plugins_trt.cpu.stored_matrix import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    UINT8,
    from_row,
    multiply,
)
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import (
    dequantise_int4,
    dequantise_int8,
    quantise_int4,
    quantise_int8,
)

LIMIT = 2e-6
BEFORE = 3
"""Rows of the stored matrix that are not asked for."""
FORMATS = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16, "int8": INT8, "int4": UINT8}


def stored(weights: np.ndarray, kind: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what is kept in memory, and the weights that it stands for."""
    if kind == "int8":
        codes, scales = quantise_int8(weights)
        return [codes, scales], dequantise_int8(codes, scales)
    if kind == "int4":
        packed, scales = quantise_int4(weights)
        return [packed, scales], dequantise_int4(packed, scales)
    types = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    kept = weights.astype(types[kind])
    return [kept], kept


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [1, 23, 24, 30, 101], ids=lambda n: f"rows{n}")
@pytest.mark.parametrize(("columns", "depth"), [(1, 2), (70, 130), (64, 1024), (37, 2306)], ids=str)
def test_product_equals_float64(
    kind: str, rows: int, columns: int, depth: int, relative_rms: Any
) -> None:
    rng = np.random.default_rng(depth)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    weights = rng.standard_normal((BEFORE + columns, depth)).astype(np.float32)
    memory, exact = stored(weights, kind)
    scales = memory[1].ctypes.data if len(memory) > 1 else 0
    matrix = (memory[0].ctypes.data, FORMATS[kind], 0, scales)
    guarded = np.full((rows, columns + 8), np.nan, np.float32)
    multiply(x, from_row(matrix, BEFORE), guarded[:, 4:-4], matrix)
    expected = x.astype(np.float64) @ exact[BEFORE:].astype(np.float64).T
    assert relative_rms(guarded[:, 4:-4], expected) <= LIMIT
    assert np.isnan(guarded[:, :4]).all()
    assert np.isnan(guarded[:, -4:]).all()
    shifted = x.astype(np.float64) @ exact[:columns].astype(np.float64).T
    assert relative_rms(guarded[:, 4:-4], shifted) > 1000 * LIMIT
