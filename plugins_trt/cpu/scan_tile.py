"""The recurrence of the selective scan over a tile of steps, a vector of channels at a time, in LLVM's vectors.

    h = exp(delta * A) * h + delta_u * B,   acc += h * C

Several states of the vector's channels stay in registers for all steps of a tile, so that memory gives little more than
delta, delta_u and acc. The exponential is two to the power of delta * (A / ln 2), whose second factor is made once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from longllava_trt.plugins_trt.cpu.elementwise import (
    LOG2_E,
    constant,
    exp_of,
    power_of_two,
    softplus_of,
)
from longllava_trt.plugins_trt.cpu.transpose import turning
from longllava_trt.plugins_trt.cpu.vector_ir import (
    FLOAT,
    HAS_AVX512,
    I64,
    LANES,
    at,
    by_vectors,
    fused,
    load,
    of_words,
    prefetch,
    slot,
    splat,
    store,
)

__all__ = ["advance", "ask", "prepare", "turn_rates"]

# each takes a register for itself and, where there are 32 of them, one for its A
_STATES = 8 if HAS_AVX512 else 4

_VECTOR = ir.VectorType(FLOAT, LANES)


def _number(builder: Any, row: Any, index: int) -> Any:
    """Return one float32 of a row in every lane."""
    place = builder.inttoptr(builder.add(row, I64(4 * index)), FLOAT.as_pointer())
    return splat(builder, builder.load(place))


def _advance_some(builder: Any, count: int, n: Any, args: list[Any]) -> None:
    """Move N states, from the n-th on, over all steps."""
    tile, step, array, steps, A, h, B, C, step_bc = args
    places = [builder.mul(builder.add(n, I64(state)), I64(4 * LANES)) for state in range(count)]
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
            decay = power_of_two(builder, builder.fmul(delta, rate))
            added = builder.fmul(delta_u, _number(builder, row_b, state))
            now = fused(builder, decay, builder.load(kept), added)
            builder.store(now, kept)
            acc = fused(builder, now, _number(builder, row_c, state), acc)
        store(builder, acc, target, None)
    for place, kept in zip(places, slots, strict=True):
        store(builder, builder.load(kept), builder.add(h, place), None)


def _advance(builder: Any, *args: Any) -> None:
    *rest, d_state = args
    whole = builder.and_(d_state, I64(-_STATES))
    with cgutils.for_range_slice(builder, I64(0), whole, I64(_STATES)) as (n, _):
        _advance_some(builder, _STATES, n, rest)
    with cgutils.for_range_slice(builder, whole, d_state, I64(1)) as (n, _):
        _advance_some(builder, 1, n, rest)


advance = of_words("advance", 10, _advance)
"""Move the states of a vector of channels over the steps of a tile, in place.

Words: where the tile's delta of the vector's first channel is, bytes from a step to the next, bytes from there to delta * u
and on to the outputs so far, to which this adds; steps; A / ln 2 and h, [d_state, LANES]; B and C, bytes from a step of
theirs to the next, d_state.
"""


def _prepare(builder: Any, *args: Any) -> None:
    *sources, row, array, count = args

    def write(offset: Any, mask: Any) -> None:
        u, dt, skip, bias = (
            load(builder, builder.add(source, offset), FLOAT, mask) for source in sources
        )
        delta = softplus_of(builder, builder.fadd(dt, bias))
        for number, made in enumerate((delta, builder.fmul(delta, u), builder.fmul(skip, u))):
            # a row of a tile has room for the lanes that do not exist
            store(builder, made, at(builder, builder.add(row, offset), array, I64(number)), None)

    by_vectors(builder, count, write)


prepare = of_words("prepare", 7, _prepare)
"""Fill a row of a tile: delta, delta * u and the skip.

Words: where u, dt, D, dt_bias and the row's delta are, bytes from there to delta * u and on to the skip; channels.
"""


def _rate(builder: Any, A_log: Any) -> Any:
    return builder.fmul(exp_of(builder, A_log), constant(A_log, -LOG2_E))


turn_rates = turning("turn_rates", _rate)
"""As `turn`, from A_log to A / ln 2."""


def _ask(builder: Any, address: Any, size: Any) -> None:
    with cgutils.for_range_slice(builder, I64(0), size, I64(64)) as (offset, _):
        prefetch(builder, builder.add(address, offset))


ask = of_words("ask", 2, _ask)
"""Ask memory for what lies at an address. Words: the address, bytes."""
