"""The product with a matrix as it is stored: floats of any width, or codes with scales.

A stored matrix is a tuple: address, element type, first row, address of its scales (0 for floats). 16-bit floats are
widened in registers; codes become float32 a few rows at a time, exactly the weights that the formats in
`kernels/sparse_moe_formats.py` stand for.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.core.dtypes import DTYPES, FLOATS
from longllava_trt.plugins_trt.cpu.call_frame import array_at
from longllava_trt.plugins_trt.cpu.elementwise import copy
from longllava_trt.plugins_trt.cpu.matmul_kernel import product
from longllava_trt.plugins_trt.cpu.panel_kernel import PANEL, multiply_panel, pack_transposed
from longllava_trt.plugins_trt.cpu.vector_ir import LANES
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP

__all__ = [
    "BFLOAT16",
    "ENOUGH_ROWS",
    "FLOAT",
    "FLOAT16",
    "INT8",
    "INT64",
    "UINT8",
    "from_row",
    "multiply",
]

FLOAT, FLOAT16, BFLOAT16 = (dtype.onnx for dtype in FLOATS)
UINT8, INT8, INT64 = DTYPES["uint8"].onnx, DTYPES["int8"].onnx, DTYPES["int64"].onnx
"""Element types as ONNX numbers them; uint8 holds two codes of four bits."""
ENOUGH_ROWS = 24
"""Number of rows from which on transposing the matrix costs less than it saves."""
_WIDENED_ROWS = 16
_DEPTH = 2048

_compile = numba.njit(error_model="numpy", cache=True)


@_compile
def from_row(stored: Any, row: Any) -> Any:
    """Return the stored matrix without its first rows."""
    address, element, first, scales = stored
    return address, element, first + row, scales


@_compile
def _multiply_few(x: Any, stored: Any, out: Any) -> None:
    rows, columns, depth = np.arange(x.shape[0]), out.shape[1], x.shape[1]
    element = stored[1]
    if element == FLOAT:
        product(x, rows, array_at(_row(stored, 4 * depth), (columns, depth), np.float32), out)
    elif element == BFLOAT16:
        product(x, rows, array_at(_row(stored, 2 * depth), (columns, depth), np.uint16), out)
    elif element == FLOAT16:
        product(x, rows, array_at(_row(stored, 2 * depth), (columns, depth), np.int16), out)
    else:
        wide = np.empty((min(columns, _WIDENED_ROWS), depth), np.float32)
        for left in range(0, columns, _WIDENED_ROWS):
            right = min(left + _WIDENED_ROWS, columns)
            _widen(from_row(stored, left), depth, 0, wide[: right - left])
            product(x, rows, wide[: right - left], out[:, left:right])


@_compile
def _multiply_many(x: Any, stored: Any, out: Any, ahead: Any) -> None:
    """Multiply a panel of columns after another, a block of the depth at a time, asking for the next block meanwhile."""
    columns, depth = out.shape[1], x.shape[1]
    deep = min(depth, _DEPTH)
    panel = np.empty((1, (deep + LANES - 1) // LANES * LANES, PANEL), np.float32)
    wide = np.empty((PANEL, deep), np.float32)
    # columns of the last panel that do not exist are computed as well
    spare = np.empty((x.shape[0], PANEL), np.float32)
    for left in range(0, columns, PANEL):
        count = min(PANEL, columns - left)
        target = out[:, left : left + PANEL] if count == PANEL else spare
        rows = from_row(stored, left)
        for first in range(0, depth, deep):
            last = min(first + deep, depth)
            _pack(rows, depth, first, wide[:count, : last - first], panel)
            if last < depth:
                wanted = _block(rows, depth, last, min(last + deep, depth))
            elif left + PANEL < columns:
                wanted = _block(from_row(stored, left + PANEL), depth, 0, deep)
            else:
                wanted = _block(ahead, depth, 0, deep)
            packed = (
                np.int64(panel.ctypes.data),
                np.int64(PANEL * 4),
                np.int64(PANEL),
                last - first,
            )
            multiply_panel(x[:, first:last], packed, target, first > 0, wanted)
        if count < PANEL:
            place, step = out[:, left:].ctypes.data, out.strides[0]
            for i in range(x.shape[0]):
                copy(spare[i].ctypes.data, place + i * step, count)


@_compile
def _block(stored: Any, depth: Any, first: Any, last: Any) -> Any:
    """Return where a panel's rows of a block of the depth lie: address, bytes from row to row, bytes of each, rows."""
    bits = _bits(stored[1])
    step = depth * bits // 8
    return _row(stored, step) + first * bits // 8, step, (last - first) * bits // 8, PANEL


@_compile
def _bits(element: Any) -> Any:
    """Return how many bits a weight takes."""
    if element == FLOAT:
        return 32
    if element == INT8:
        return 8
    return 4 if element == UINT8 else 16


@_compile
def _pack(stored: Any, depth: Any, first: Any, wide: Any, panels: Any) -> None:
    """Transpose a block of the depth of a stored matrix into panels."""
    element, last = stored[1], first + wide.shape[1]
    shape = (wide.shape[0], depth)
    if element == FLOAT:
        rows = array_at(_row(stored, 4 * depth), shape, np.float32)
        pack_transposed(rows[:, first:last], panels)
    elif element == BFLOAT16:
        bits = array_at(_row(stored, 2 * depth), shape, np.uint16)
        pack_transposed(bits[:, first:last], panels)
    elif element == FLOAT16:
        halves = array_at(_row(stored, 2 * depth), shape, np.int16)
        pack_transposed(halves[:, first:last], panels)
    else:
        _widen(stored, depth, first, wide)
        pack_transposed(wide, panels)


@_compile
def _row(stored: Any, size: Any) -> Any:
    """Return the address of the first row, for rows of N bytes."""
    return stored[0] + stored[2] * size


@_compile
def _widen(stored: Any, depth: Any, first: Any, wide: Any) -> None:
    """Turn the codes of a block of the depth into the weights that they stand for."""
    for row in range(wide.shape[0]):
        if stored[1] == INT8:
            _widen_int8(from_row(stored, row), depth, first, wide[row])
        else:
            _widen_int4(from_row(stored, row), depth, first, wide[row])


@_compile
def _widen_int8(stored: Any, depth: Any, first: Any, wide: Any) -> None:
    codes = array_at(_row(stored, depth) + first, wide.shape, np.int8)
    scale = array_at(stored[3] + stored[2] * 4, (1,), np.float32)[0]
    for k in range(wide.size):
        wide[k] = np.float32(codes[k]) * scale


@_compile
def _widen_int4(stored: Any, depth: Any, first: Any, wide: Any) -> None:
    groups, half = (depth + GROUP - 1) // GROUP, wide.size // 2
    pairs = array_at(_row(stored, depth // 2) + first // 2, (half,), np.uint8)
    scales = array_at(stored[3] + stored[2] * groups * 4, (groups,), np.float32)
    # blocks of the depth begin where a group does
    for begin in range(0, half, GROUP // 2):
        scale = scales[(first + 2 * begin) // GROUP]
        for k in range(begin, min(begin + GROUP // 2, half)):
            wide[2 * k] = np.float32(np.int32(pairs[k] & 15) - 8) * scale
            wide[2 * k + 1] = np.float32(np.int32(pairs[k] >> 4) - 8) * scale


# one signature, lest the whole be compiled for contiguous outputs and others
@numba.njit(
    "void(float32[:, ::1], UniTuple(int64, 4), float32[:, :], UniTuple(int64, 4))",
    error_model="numpy",
    cache=True,
)
def multiply(x: Any, stored: Any, out: Any, ahead: Any) -> None:
    """Multiply every row of x with as many rows of a stored matrix as out has columns.

    Few rows read the matrix as it lies, many have a block of it transposed first: what a row gives differs between the
    two in the order of its sums.

    Args:
        x: [rows, depth], float32, contiguous.
        stored: At least as many rows as out has columns, each of depth.
        out: Overwritten. [rows, columns], float32; rows may be any distance apart.
        ahead: The stored matrix that will be wanted next, of the same elements and depth.
    """
    if x.shape[0] >= ENOUGH_ROWS:
        _multiply_many(x, stored, out, ahead)
    else:
        _multiply_few(x, stored, out)
