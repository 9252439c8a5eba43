"""A dense layer over stored weights: [out, in] in the checkpoint's dtype; no copy of them outlives a task."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.plugins_trt.cpu.call_frame import (
    PHASE,
    PLAN,
    bytes_at,
    dim,
    element_type,
    frame_words,
    matrix,
)
from longllava_trt.plugins_trt.cpu.stored_matrix import ENOUGH_ROWS, from_row, multiply

__all__ = ["blocks", "columns_for", "linear_phase", "linear_plan"]

_ROWS = 512


@numba.njit("int64(int64, int64)", error_model="numpy", cache=True)
def blocks(size: Any, block: Any) -> Any:
    """Return how many blocks cover a size."""
    return (size + block - 1) // block


@numba.njit("int64(int64)", error_model="numpy", cache=True)
def columns_for(rows: Any) -> Any:
    """Return how many rows of a matrix make a task: a panel for many rows of x, a long stretch of memory for few."""
    return 64 if rows >= ENOUGH_ROWS else 256


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def linear_plan(address: Any) -> Any:
    """Make a task of each block of outputs of each block of rows."""
    frame = frame_words(address)
    rows = matrix(frame, 0).shape[0]
    frame[0] = blocks(rows, _ROWS) * blocks(dim(frame, 1, 0), columns_for(rows))
    return 0


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def linear_phase(address: Any, task: Any) -> None:
    """Compute one block: values are x, weight and y."""
    frame = frame_words(address)
    x, y = matrix(frame, 0), matrix(frame, 2)
    # one block of rows after another of the same weights, which are then in the cache
    down, columns = blocks(x.shape[0], _ROWS), columns_for(x.shape[0])
    top, left = np.int64(task) % down * _ROWS, np.int64(task) // down * columns
    bottom, right = min(top + _ROWS, x.shape[0]), min(left + columns, y.shape[1])
    stored = (bytes_at(frame, 1), element_type(frame, 1), left, np.int64(0))
    multiply(x[top:bottom], stored, y[top:bottom, left:right], from_row(stored, columns))
