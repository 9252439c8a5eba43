"""The selective scan: 64 steps a tile, 128 channels a task.

A task makes delta, delta * u and the skip row by row, as they lie in memory, then moves one vector of channels after
another over all steps of the tile (`scan_tile`), then gates row by row. All three stay in the second-level cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from plugins_trt.cpu.call_frame import PHASE, PLAN, dim, floats, frame_words, matrix, tensor
from plugins_trt.cpu.elementwise import exp, silu, softplus
from plugins_trt.cpu.scan_tile import LOG2_E, advance, turn
from plugins_trt.cpu.vector_ir import I32, LANES, call

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["scan_phase", "scan_plan"]

_SPAN = 128
_TILE = 64
_AHEAD = 8
_LINE_BYTES = 64
# rows a power of two apart would meet in few places of the first-level cache
_ROW = _SPAN + 16
_LOG2_E = np.float32(LOG2_E)


def _type_prefetch(_context: Any, _address: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the line at an address; one that cannot be read does no harm."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# not a decorator: that would give callers the compiler's own signature
_prefetch: Any = intrinsic(_type_prefetch)

_compile = numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)


@_compile
def _load_span(A_log: Any, state: Any) -> Any:
    """Return A / ln 2 and the state as [vector, d_state, lane]; a narrow last vector is padded with zeros."""
    channels, d_state = A_log.shape
    vectors = (channels + LANES - 1) // LANES
    A = np.zeros((vectors, d_state, LANES), np.float32)
    h = np.zeros((vectors, d_state, LANES), np.float32)
    for v in range(vectors):
        turn(A_log[v * LANES : (v + 1) * LANES], A[v])
        turn(state[v * LANES : (v + 1) * LANES], h[v])
    rates = A.ravel()
    for i in range(rates.size):
        rates[i] = -exp(rates[i]) * _LOG2_E
    return A, h


@_compile
def _ask(rows: Any, b: Any, t: Any, first: Any) -> None:
    """Prefetch a span of a row: rows lie so far apart that the machine does not see them coming."""
    line = rows.ctypes.data + ((b * rows.shape[1] + t) * rows.shape[2] + first) * 4
    for offset in range(0, _SPAN * 4, _LINE_BYTES):
        _prefetch(np.int64(line + offset))


@_compile
def _copy(source: Any, target: Any) -> None:
    # not a slice assignment, which guards against overlaps that cannot be, at several times the cost
    for i in range(source.size):
        target[i] = source[i]


@_compile
def _prepare(u: Any, dt: Any, skip: Any, bias: Any, tiles: Any, t: Any) -> None:
    """Fill one step of the tiles: delta, delta * u and the skip."""
    delta, delta_u, acc = tiles[0, t], tiles[1, t], tiles[2, t]
    for i in range(u.size):
        delta[i] = softplus(dt[i] + bias[i])
    for i in range(u.size):
        delta_u[i] = delta[i] * u[i]
    for i in range(u.size):
        acc[i] = skip[i] * u[i]


@_compile
def _gate(z: Any, acc: Any, y: Any) -> None:
    for i in range(z.size):
        y[i] = silu(z[i]) * acc[i]


@_compile
def _scan_span(
    task: Any,
    u: Any,
    dt: Any,
    A_log: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    dt_bias: Any,
    state: Any,
    y: Any,
    state_out: Any,
) -> None:
    """Scan one span of channels of one batch entry; spans are counted across the batch."""
    seq_len, d_inner = u.shape[1:]
    spans = (d_inner + _SPAN - 1) // _SPAN
    b, first = task // spans, task % spans * _SPAN
    last = min(first + _SPAN, d_inner)
    A, h = _load_span(A_log[first:last], state[b, first:last])
    # channels that fill a narrow last vector have a delta of anything, and a state that stays their own
    tiles = np.empty((3, min(_TILE, seq_len), _ROW), np.float32)
    for start in range(0, seq_len, _TILE):
        steps = min(_TILE, seq_len - start)
        for t in range(start, start + steps):
            _ask(u, b, t + _AHEAD, first)
            _ask(dt, b, t + _AHEAD, first)
            _ask(z, b, t, first)
            _ask(y, b, t, first)
            u_row, dt_row = u[b, t, first:last], dt[b, t, first:last]
            _prepare(u_row, dt_row, D[first:last], dt_bias[first:last], tiles, t - start)
        for v in range(h.shape[0]):
            advance(tiles, v * LANES, steps, A[v], h[v], B[b, start:], C[b, start:])
        for t in range(start, start + steps):
            _gate(z[b, t, first:last], tiles[2, t - start], y[b, t, first:last])
    for v in range(h.shape[0]):
        turn(h[v], state_out[b, first + v * LANES : last])


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def scan_plan(address: Any) -> Any:
    """Make a task of each span of channels of each batch entry."""
    frame = frame_words(address)
    frame[0] = dim(frame, 0, 0) * ((dim(frame, 0, 2) + _SPAN - 1) // _SPAN)
    return 0


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def scan_phase(address: Any, task: Any) -> None:
    """Scan one span; values in the order of `plugins_trt.spec.SELECTIVE_SCAN`."""
    frame = frame_words(address)
    _scan_span(
        np.int64(task),
        tensor(frame, 0),
        tensor(frame, 1),
        matrix(frame, 2),
        tensor(frame, 3),
        tensor(frame, 4),
        floats(frame, 5),
        tensor(frame, 6),
        floats(frame, 7),
        tensor(frame, 8),
        tensor(frame, 9),
        tensor(frame, 10),
    )
