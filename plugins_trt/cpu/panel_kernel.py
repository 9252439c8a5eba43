"""The float32 product of a few rows with a panel, for operands that are made and used in the cache.

`product` of `matmul_kernel` sums along vectors, which suits long rows that lie in memory. Attention
multiplies with rows as short as a head. Here a vector runs across columns instead and each row's numbers
are spread over the lanes, so that nothing has to be folded; a panel is as wide as the registers hold for
four rows. Values enter this form as they lie, keys by a transposition that costs little beside reading them.

An output is one chain of fused multiply-adds along the depth: it has the same bits whatever rows,
columns or panels are computed beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from longllava_trt.plugins_trt.cpu.vector_ir import (
    ELEMENTS,
    FLOAT,
    HAS_AVX512,
    I64,
    LANES,
    at,
    call,
    lanes_below,
    load,
    multiply_add,
    of_words,
    prefetch,
    slot,
    splat,
    store,
    transposed,
    widened,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PANEL", "ROWS", "highest", "multiply_panel", "pack_transposed"]

_VECTORS = 4 if HAS_AVX512 else 2

ROWS = 4
"""Rows that are computed together."""

PANEL = _VECTORS * LANES
"""Columns of a panel."""

_VECTOR = ir.VectorType(FLOAT, LANES)


def _tile(rows: int, *, is_whole: bool) -> Any:
    """Return the product of N rows with a panel, of which all columns exist or only some."""

    def write(builder: Any, *words: Any) -> None:
        a, a_step, b, b_step, columns, depth, out, out_step, adds, ahead, rate = words
        vectors = [(v, I64(4 * LANES)) for v in map(I64, range(_VECTORS))]
        masks = [
            None if is_whole else lanes_below(builder, columns, first=v * LANES)
            for v in range(_VECTORS)
        ]
        a_rows, out_rows = (
            [at(builder, first, step, I64(row)) for row in range(rows)]
            for first, step in ((a, a_step), (out, out_step))
        )
        places = [[at(builder, row, step, v) for v, step in vectors] for row in out_rows]
        sums = [[slot(builder, _VECTOR(None)) for _ in vectors] for _ in range(rows)]
        with builder.if_then(builder.icmp_signed("!=", adds, I64(0))):
            for row, slots in zip(places, sums, strict=True):
                for place, total in zip(row, slots, strict=True):
                    builder.store(load(builder, place, FLOAT, None), total)
        with cgutils.for_range(builder, depth) as loop:
            prefetch(builder, at(builder, ahead, rate, loop.index))
            b_row = at(builder, b, b_step, loop.index)
            b_parts = [
                load(builder, at(builder, b_row, step, v), FLOAT, mask)
                for (v, step), mask in zip(vectors, masks, strict=True)
            ]
            for a_row, slots in zip(a_rows, sums, strict=True):
                place = at(builder, a_row, I64(4), loop.index)
                factor = builder.load(builder.inttoptr(place, FLOAT.as_pointer()))
                spread = splat(builder, factor)
                for total, b_part in zip(slots, b_parts, strict=True):
                    multiply_add(builder, spread, b_part, total)
        for row, slots in zip(places, sums, strict=True):
            for place, total in zip(row, slots, strict=True):
                store(builder, builder.load(total), place, None)

    return of_words("tile", 11, write)


_tile_whole, _tile_part = _tile(ROWS, is_whole=True), _tile(ROWS, is_whole=False)
_row_whole = _tile(1, is_whole=True)


@intrinsic
def _transpose(
    _context: Any, like: Any, _source: Any, _step: Any, _rows: Any, _columns: Any, _out: Any
) -> tuple[Any, Callable[..., Any]]:
    """Write a square of vectors into a panel's rows, widened; rows that do not exist repeat the last."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, source, step, rows, columns, out = args
        element = ELEMENTS[signature.args[0].dtype]
        last = builder.sub(rows, I64(1))
        mask = lanes_below(builder, columns)
        square = []
        for row in range(LANES):
            exists = builder.icmp_signed("<", I64(row), last)
            address = at(builder, source, step, builder.select(exists, I64(row), last))
            square.append(widened(builder, load(builder, address, element, mask)))
        for row, vector in enumerate(transposed(builder, square)):
            store(builder, vector, at(builder, out, I64(4 * PANEL), I64(row)), None)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), codegen


@intrinsic
def _highest(_context: Any, _row: Any, _count: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the largest of N numbers, a multiple of the vector width; LLVM keeps such a loop scalar."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row, count = args
        lowest = ir.Constant(_VECTOR, [float("-inf")] * LANES)
        top_slot = slot(builder, lowest)
        vectors = builder.sdiv(count, I64(LANES))
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(row, builder.mul(loop.index, I64(4 * LANES)))
            found, top = load(builder, place, FLOAT, None), builder.load(top_slot)
            above = builder.fcmp_ordered(">", found, top)
            builder.store(builder.select(above, found, top), top_slot)
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        return call(builder, name, FLOAT, [builder.load(top_slot)])

    return types.float32(types.int64, types.int64), codegen


_compile = numba.njit(error_model="numpy", cache=True)


@_compile
def highest(row: Any) -> Any:
    """Return the largest number of a row, whose length must be a multiple of PANEL."""
    return _highest(row.ctypes.data, row.size)  # type: ignore[call-arg]


@numba.njit(
    "void(float32[:, :], UniTuple(int64, 4), float32[:, :], boolean, UniTuple(int64, 4))",
    error_model="numpy",
    cache=True,
)
def multiply_panel(a: Any, panel: Any, out: Any, adds: Any, ahead: Any) -> None:
    """Multiply rows with a panel.

    Args:
        a: [rows, depth or more]; rows a multiple of ROWS where columns of the panel are missing.
        panel: Address of its first row, bytes from one of its rows to the next, how many of its columns exist (no others
            are read), and how many rows.
        out: [rows, PANEL or more]; all columns of a panel are written.
        adds: Whether to add to what is in out.
        ahead: What to ask memory for meanwhile: address, bytes from one row to the next, bytes of a row, rows.
    """
    b, b_step, columns, depth = panel
    wanted, wanted_step, wanted_width, wanted_rows = ahead
    place, target, more = a.ctypes.data, out.ctypes.data, np.int64(adds)
    tiles = max(a.shape[0] // ROWS, 1)
    share = wanted_width * wanted_rows
    rate = (share + tiles * depth - 1) // (tiles * depth)
    for tile in range(a.shape[0] // ROWS):
        begin = share * tile // tiles
        line = wanted + begin // wanted_width * wanted_step + begin % wanted_width
        words = (place, a.strides[0], b, b_step, columns, depth, target, out.strides[0], more)
        if columns >= PANEL:
            _tile_whole(*words, line, rate)
        else:
            _tile_part(*words, line, rate)
        place += ROWS * a.strides[0]
        target += ROWS * out.strides[0]
    for _ in range(a.shape[0] % ROWS):
        words = (place, a.strides[0], b, b_step, columns, depth, target, out.strides[0], more)
        _row_whole(*words, wanted, 0)
        place += a.strides[0]
        target += out.strides[0]


@_compile
def pack_transposed(rows: Any, panels: Any) -> None:
    """Write rows as the columns of panels.

    Args:
        rows: [count, depth], contiguous along the depth: float32, uint16 (the bits of bfloat16) or int16 (of half).
        panels: [count / PANEL, depth, PANEL], both rounded up, the depth to a multiple of 16. Columns
            and depths that do not exist are left with anything.
    """
    count, depth = rows.shape
    for first in range(0, count, LANES):
        panel = panels[first // PANEL].ctypes.data + first % PANEL * 4
        source = rows[first:].ctypes.data
        for d in range(0, depth, LANES):
            place, target = source + d * rows.itemsize, panel + d * PANEL * 4
            _transpose(rows, place, rows.strides[0], count - first, depth - d, target)  # type: ignore[call-arg]
