"""The recurrence of the selective scan over a tile of steps, a vector of channels at a time, in LLVM's vectors.

    h = exp(delta * A) * h + delta_u * B,   acc += h * C

Several states of the vector's channels stay in registers for all steps of a tile, so that memory gives little more than
delta, delta_u and acc. The exponential is two to the power of delta * (A / ln 2), whose second factor is made once: a
rounding to the nearest whole number by adding and taking away a large one, a polynomial for the rest, and the whole number
added to the exponent's bits. Worst relative error of that power against float64: 1.4 float32 ulp (2^-23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from plugins_trt.cpu.vector_ir import (
    FLOAT,
    HAS_AVX512,
    I32,
    I64,
    LANES,
    at,
    call,
    lanes_below,
    load,
    slot,
    splat,
    store,
    transposed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOG2_E", "advance", "turn"]

LOG2_E = 1.4426950408889634
"""What A is multiplied with before `advance`."""

# each takes a register for itself and, where there are 32 of them, one for its A
_STATES = 8 if HAS_AVX512 else 4

_VECTOR, _WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
# of 2^r for r within a half: the constant term is 1
_POLYNOMIAL = (
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.001326472731307149,
)
# added to a float32 of less than 2^22, it leaves no place for a fraction
_LARGE = 1.5 * 2**23
_LEAST = -125.0


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [value] * LANES)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the machine can."""
    return call(builder, f"llvm.fmuladd.v{LANES}f32", _VECTOR, [a, b, c])


def _power_of_two(builder: Any, x: Any) -> Any:
    """Return 2^x for x <= 0; below -125 it stays as it is there."""
    least = _constant(_LEAST)
    x = builder.select(builder.fcmp_ordered(">", x, least), x, least)
    shifted = builder.fadd(x, _constant(_LARGE))
    rest = builder.fsub(x, builder.fsub(shifted, _constant(_LARGE)))
    power = _constant(_POLYNOMIAL[-1])
    for coefficient in (*_POLYNOMIAL[-2::-1], 1.0):
        power = _fused(builder, power, rest, _constant(coefficient))
    whole = builder.shl(builder.bitcast(shifted, _WORDS), ir.Constant(_WORDS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, _WORDS), whole), _VECTOR)


def _number(builder: Any, row: Any, index: int) -> Any:
    """Return one float32 of a row in every lane."""
    place = builder.inttoptr(builder.add(row, I64(4 * index)), FLOAT.as_pointer())
    return splat(builder, builder.load(place))


def _advance_some(builder: Any, count: int, n: Any, args: list[Any]) -> None:
    """Move so many states, from the n-th on, over all steps."""
    tile, step, array, steps, A, h, B, C, step_bc = args
    places = [
        builder.mul(builder.add(n, I64(state)), I64(4 * LANES)) for state in range(count)
    ]
    rates = [load(builder, builder.add(A, place), FLOAT, None) for place in places]
    slots = [slot(builder, load(builder, builder.add(h, place), FLOAT, None)) for place in places]
    first = builder.mul(n, I64(4))
    B, C = builder.add(B, first), builder.add(C, first)
    with cgutils.for_range(builder, steps) as loop:
        place = at(builder, tile, step, loop.index)
        target = at(builder, place, array, I64(2))
        delta = load(builder, place, FLOAT, None)
        delta_u = load(builder, builder.add(place, array), FLOAT, None)
        acc = load(builder, target, FLOAT, None)
        row_b, row_c = (at(builder, row, step_bc, loop.index) for row in (B, C))
        for state, (rate, kept) in enumerate(zip(rates, slots, strict=True)):
            decay = _power_of_two(builder, builder.fmul(delta, rate))
            added = builder.fmul(delta_u, _number(builder, row_b, state))
            now = _fused(builder, decay, builder.load(kept), added)
            builder.store(now, kept)
            acc = _fused(builder, now, _number(builder, row_c, state), acc)
        store(builder, acc, target, None)
    for place, kept in zip(places, slots, strict=True):
        store(builder, builder.load(kept), builder.add(h, place), None)


@intrinsic
def _advance(  # noqa: PLR0913, PLR0917 - addresses and distances
    _context: Any,
    _tile: Any,
    _step: Any,
    _array: Any,
    _steps: Any,
    _A: Any,  # noqa: N803 - the state-space paper's names
    _h: Any,
    _B: Any,  # noqa: N803
    _C: Any,  # noqa: N803
    _step_bc: Any,
    _d_state: Any,
) -> tuple[Any, Callable[..., Any]]:
    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        *rest, d_state = args
        whole = builder.and_(d_state, I64(-_STATES))
        with cgutils.for_range_slice(builder, I64(0), whole, I64(_STATES)) as (n, _):
            _advance_some(builder, _STATES, n, rest)
        with cgutils.for_range_slice(builder, whole, d_state, I64(1)) as (n, _):
            _advance_some(builder, 1, n, rest)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), codegen


@intrinsic
def _turn(
    _context: Any, _source: Any, _step: Any, _rows: Any, _columns: Any, _out: Any, _out_step: Any
) -> tuple[Any, Callable[..., Any]]:
    """Write a square of vectors transposed; what does not exist is not read and not written."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, step, rows, columns, out, out_step = args
        nothing = lanes_below(builder, I64(0))
        inside, across = lanes_below(builder, columns), lanes_below(builder, rows)

        def mask(mask: Any, row: int, count: Any) -> Any:
            return builder.select(builder.icmp_signed("<", I64(row), count), mask, nothing)

        square = [
            load(builder, at(builder, source, step, I64(r)), FLOAT, mask(inside, r, rows))
            for r in range(LANES)
        ]
        for r, vector in enumerate(transposed(builder, square)):
            store(builder, vector, at(builder, out, out_step, I64(r)), mask(across, r, columns))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


_compile = numba.njit(error_model="numpy", cache=True)


@_compile
def advance(tiles: Any, left: Any, steps: Any, A: Any, h: Any, B: Any, C: Any) -> None:
    """Move the states of one vector of channels over a tile, in place.

    Args:
        tiles: delta, delta * u and the outputs so far, to which this adds. [3, steps or more, channels], float32, contiguous.
        left: The vector's first channel in the tiles.
        steps: How many.
        A: Times `LOG2_E`, at most 0. [d_state, LANES], float32, contiguous.
        h: Overwritten with the last states. As A.
        B: [steps, d_state], float32, contiguous.
        C: As B.
    """
    _advance(  # type: ignore[call-arg]
        tiles[0, 0, left:].ctypes.data,
        tiles.strides[1],
        tiles.strides[0],
        steps,
        A.ctypes.data,
        h.ctypes.data,
        B.ctypes.data,
        C.ctypes.data,
        B.strides[0],
        B.shape[1],
    )


@_compile
def turn(rows: Any, columns: Any) -> None:
    """Write the rows of a matrix as the columns of another, as far as both have them.

    Args:
        rows: [m, n], float32, each row contiguous.
        columns: Overwritten. [n, m], float32, each row contiguous.
    """
    m, n = min(rows.shape[0], columns.shape[1]), min(rows.shape[1], columns.shape[0])
    source, out = rows.ctypes.data, columns.ctypes.data
    step, out_step = rows.strides[0], columns.strides[0]
    for i in range(0, m, LANES):
        for j in range(0, n, LANES):
            _turn(  # type: ignore[call-arg]
                source + i * step + j * 4, step, m - i, n - j, out + j * out_step + i * 4, out_step
            )
