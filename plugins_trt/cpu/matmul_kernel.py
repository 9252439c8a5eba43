"""The float32 matrix product on one thread: rows of x by rows of w, both contiguous along k.

A checkpoint's weights lie as [out, in], so nothing is transposed or packed: a tile of six rows of x
by four rows of w keeps one vector accumulator for each pair, and its sums are folded at its end.
A block of k is short enough that four rows of w stay in the first-level cache while rows of x pass,
and a block of rows of x stays in the second-level cache while w passes. 16-bit weights are widened
in registers. The next four rows of w are asked for ahead of time.

The order of summation depends on depth alone: an output has the same bits however many rows or
columns are asked for together.
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
    lanes_below,
    load,
    multiply_add,
    prefetch,
    shuffle,
    size_of,
    slot,
    store,
    widened,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["product"]

# a tile's accumulators, its shorter side and one more vector are all the registers there are
_ROWS = 6 if HAS_AVX512 else 3
_COLUMNS = 4
_BLOCK_DEPTH = 1024
_BLOCK_ROWS = 144
_BLOCK_BYTES = 640 * 1024
_LINE_BYTES = 64
_FIXED = 9


def _fold_pair(builder: Any, a: Any, b: Any, low: list[int], high: list[int]) -> Any:
    """Add two shuffles of a and b; low and high pick from each group of four, b's from 4."""
    lanes = a.type.count
    halves = []
    for picks in (low, high):
        of_groups = [pick + (lanes - 4 if pick >= 4 else 0) for pick in picks]
        every = [group + pick for group in range(0, lanes, 4) for pick in of_groups]
        halves.append(shuffle(builder, a, b, every))
    return builder.fadd(*halves)


def _fold(builder: Any, sums: list[Any]) -> Any:
    """Return the lane sums of four vectors as one vector of four."""
    first = _fold_pair(builder, sums[0], sums[1], [0, 4, 1, 5], [2, 6, 3, 7])
    second = _fold_pair(builder, sums[2], sums[3], [0, 4, 1, 5], [2, 6, 3, 7])
    total = _fold_pair(builder, first, second, [0, 1, 4, 5], [2, 3, 6, 7])
    while (lanes := total.type.count // 2) >= _COLUMNS:
        low = shuffle(builder, total, total, list(range(lanes)))
        total = builder.fadd(low, shuffle(builder, total, total, list(range(lanes, 2 * lanes))))
    return total


def _multiply(
    builder: Any, x: list[Any], w: list[Any], element: Any, sums: list[list[Any]], mask: Any
) -> None:
    """Add one vector along k of every pair to the sums, which lie in slots, [row][column]."""

    def load_x(address: Any) -> Any:
        return load(builder, address, FLOAT, mask)

    def load_w(address: Any) -> Any:
        return widened(builder, load(builder, address, element, mask))

    if len(x) < len(w):
        x_parts = [load_x(address) for address in x]
        for column, address in enumerate(w):
            w_part = load_w(address)
            for row, x_part in enumerate(x_parts):
                multiply_add(builder, x_part, w_part, sums[row][column])
    else:
        w_parts = [load_w(address) for address in w]
        for row, address in enumerate(x):
            x_part = load_x(address)
            for column, w_part in enumerate(w_parts):
                multiply_add(builder, x_part, w_part, sums[row][column])


def _row_addresses(builder: Any, first: Any, step: Any, numbers: list[Any]) -> list[Any]:
    return [at(builder, first, step, number) for number in numbers]


def _tile_rows(builder: Any, height: int, rows: Any, fixed: list[Any]) -> tuple[list[Any], ...]:
    """Return the addresses of a tile's rows of x and of w; columns not asked for repeat the last."""
    x, x_step, w, w_step, columns = fixed[:5]
    numbers = builder.inttoptr(rows, I64.as_pointer())
    x_numbers = [builder.load(builder.gep(numbers, [I64(row)])) for row in range(height)]
    last = builder.sub(columns, I64(1))
    inside = [builder.icmp_signed("<", I64(column), last) for column in range(_COLUMNS)]
    w_numbers = [builder.select(inside[i], I64(i), last) for i in range(_COLUMNS)]
    return (
        _row_addresses(builder, x, x_step, x_numbers),
        _row_addresses(builder, w, w_step, w_numbers),
    )


def _sum_tile(
    builder: Any, rows: tuple[list[Any], ...], element: Any, depth: Any, ahead: tuple[Any, Any]
) -> list[list[Any]]:
    """Run along k and return the sums, [row][column]; ahead is an address and bytes per k."""
    zero = ir.VectorType(FLOAT, LANES)(None)
    slots = [[slot(builder, zero) for _ in rows[1]] for _ in rows[0]]

    # a full tile computes for long enough that one line a step is in time; more cost a fifth
    asked = 1 if len(rows[0]) == _ROWS else _COLUMNS * LANES * size_of(element)

    def advance(k: Any, mask: Any) -> None:
        line = builder.add(ahead[0], builder.mul(k, ahead[1]))
        for offset in range(0, asked, _LINE_BYTES):
            prefetch(builder, builder.add(line, I64(offset)))
        x_part = [builder.add(row, builder.mul(k, I64(4))) for row in rows[0]]
        w_part = [builder.add(row, builder.mul(k, I64(size_of(element)))) for row in rows[1]]
        _multiply(builder, x_part, w_part, element, slots, mask)

    whole = builder.and_(depth, I64(-LANES))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(LANES)) as (k, _):
        advance(k, None)
    with builder.if_then(builder.icmp_signed("<", whole, depth)):
        advance(whole, lanes_below(builder, builder.sub(depth, whole), LANES))
    return [[builder.load(total) for total in row] for row in slots]


def _tile(height: int) -> Any:
    """Return the product of height rows of x with up to four rows of w, over one block of k."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, rows, out, ahead, packed = args
        fixed = cgutils.unpack_tuple(builder, packed, _FIXED)  # type: ignore[no-untyped-call]
        columns, depth, out_step, adds, ahead_rate = fixed[4:]
        element = ELEMENTS[signature.args[0].dtype]
        addresses = _tile_rows(builder, height, rows, fixed)
        sums = _sum_tile(builder, addresses, element, depth, (ahead, ahead_rate))
        stored = lanes_below(builder, columns, _COLUMNS)
        added = lanes_below(builder, builder.mul(columns, adds), _COLUMNS)
        places = _row_addresses(builder, out, out_step, list(map(I64, range(height))))
        for place, row in zip(places, sums, strict=True):
            total = builder.fadd(_fold(builder, row), load(builder, place, FLOAT, added, _COLUMNS))
            store(builder, total, place, stored)
        return context.get_dummy_value()

    @intrinsic
    def tile(
        _context: Any, like: Any, _rows: Any, _out: Any, _ahead: Any, _fixed: Any
    ) -> tuple[Any, Callable[..., Any]]:
        numbers = types.UniTuple(types.int64, _FIXED)  # type: ignore[no-untyped-call]
        return types.void(like, types.int64, types.int64, types.int64, numbers), codegen

    return tile


_tile_full, _tile_pair, _tile_single = _tile(_ROWS), _tile(2), _tile(1)

_compile = numba.njit(error_model="numpy", cache=True, nogil=True)


@_compile
def _strip(like: Any, rows: Any, out: Any, ahead: Any, ahead_step: Any, fixed: Any) -> None:
    """Multiply all rows of x with up to four rows of w, over one block of k."""
    left, row, out_step = rows.size, np.int64(rows.ctypes.data), fixed[6]
    last_ahead = ahead + (_COLUMNS - 1) * ahead_step
    while left >= _ROWS:
        _tile_full(like, row, out, ahead, fixed)
        left, row, out = left - _ROWS, row + 8 * _ROWS, out + out_step * _ROWS
        ahead = min(ahead + ahead_step, last_ahead)
    while left >= 2:
        _tile_pair(like, row, out, ahead, fixed)
        left, row, out = left - 2, row + 8 * 2, out + out_step * 2
    if left:
        _tile_single(like, row, out, ahead, fixed)


@_compile
def product(x: Any, rows: Any, w: Any, out: Any) -> None:
    """Write the product of chosen rows of x with every row of w, on the calling thread.

    Nothing is allocated and nothing is kept, so threads may call it together on parts of one w.

    Args:
        x: [tokens, depth], float32, each row contiguous.
        rows: Which rows of x, in any order, repeats allowed; not checked. [m], int64, contiguous.
        w: [n, depth], each row contiguous: float32, uint16 (the bits of bfloat16) or int16 (the
            bits of IEEE half).
        out: Overwritten. [m, n], float32; each row contiguous, rows any distance apart.
    """
    m, (n, depth), width = rows.size, w.shape, w.itemsize
    parts = (depth + _BLOCK_DEPTH - 1) // _BLOCK_DEPTH
    span = ((depth + parts - 1) // parts + LANES - 1) // LANES * LANES
    parts = max((m + _BLOCK_ROWS - 1) // _BLOCK_ROWS, 1)
    tall = max(((m + parts - 1) // parts + _ROWS - 1) // _ROWS, 1) * _ROWS
    # while all of x stays in the cache, w is read in the order it lies
    reach = depth if m * depth * 4 <= _BLOCK_BYTES else span
    # of the next rows of w, many tiles ask for one each, few for all, in the order they lie
    one_each = m >= _COLUMNS * _ROWS or reach < depth
    rate = width if one_each else _COLUMNS * width
    x_base, w_base, out_base = x.ctypes.data, w.ctypes.data, out.ctypes.data
    x_step, w_step, out_step = x.strides[0], w.strides[0], out.strides[0]
    for first in range(0, depth, reach):
        for i in range(0, m, tall):
            for j in range(0, n, _COLUMNS):
                for k in range(first, min(first + reach, depth), span):
                    fixed = (
                        np.int64(x_base + k * 4),
                        x_step,
                        np.int64(w_base + j * w_step + k * width),
                        w_step,
                        min(n - j, _COLUMNS),
                        min(depth - k, span),
                        out_step,
                        np.int64(k > 0),
                        np.int64(rate),
                    )
                    place = np.int64(out_base + i * out_step + j * 4)
                    ahead = np.int64(w_base + (j + _COLUMNS) * w_step + k * rate)
                    _strip(w, rows[i : i + tall], place, ahead, w_step * one_each, fixed)
