"""The selective scan as Numba loops: 16 channels abreast, 64 steps a tile, 128 channels a task.

Within a tile the loop over d_state is outermost, so that two states of 16 channels stay in
registers for 64 steps while the tile's inputs stay in the first-level cache. A single step has nothing to
keep: there the states of one channel go abreast, as they lie. exp, softplus and SiLU
are straight-line float32 arithmetic, which LLVM turns into vector code; calls into libm would stay
scalar and cost more than the scan. Worst relative error against float64, in float32 ulp (2^-23):
exp 0.8, softplus 2.3, SiLU 1.9.

All of it is one file because Numba's disk cache looks at the file of the outermost function only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from plugins_trt.cpu.call_frame import PHASE, PLAN, dim, floats, frame_words, matrix, tensor
from plugins_trt.cpu.vector_ir import I32, call

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["exp", "exp_nonpositive", "scan_phase", "scan_plan", "silu", "softplus"]

_LANES = 16
_GROUPS = 8
_SPAN = _GROUPS * _LANES
_TILE = 64
_AHEAD = 8
_LINE_BYTES = 64

_f = np.float32
_ZERO, _HALF, _ONE, _TWO = _f(0.0), _f(0.5), _f(1.0), _f(2.0)
_MAX_EXPONENT = _f(87.3)
_LOG2_E = _f(1.4426950408889634)
# the high part has nine bits, so its product with an exponent is exact
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.1219444005469057e-4)
_E2, _E3, _E4, _E5, _E6 = (
    _f(0.5),
    _f(0.16666576998242918),
    _f(0.04166655462787958),
    _f(0.008363177629996275),
    _f(0.0013926181810625742),
)
_L1, _L3, _L5, _L7, _L9 = (
    _f(2.0),
    _f(0.6666632164138194),
    _f(0.40024595230612836),
    _f(0.2796515774560171),
    _f(0.28157778363602565),
)


@intrinsic
def _float_from_bits(_context: Any, _bits: Any) -> tuple[Any, Callable[..., Any]]:
    """Reinterpret an int32 as the float32 of the same bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


def _type_prefetch(_context: Any, _address: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the line at an address; one that cannot be read does no harm."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# not a decorator: that would give callers the compiler's own signature
_prefetch: Any = intrinsic(_type_prefetch)

# no reassociation: it would merge the two halves of ln 2. no conditional expressions: they would
# keep loops scalar
_compile = numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)


@_compile
def _exp(x: Any, k: Any) -> Any:
    """Return exp(x), given the integer nearest x / ln 2."""
    kf = _f(k)
    r = (x - kf * _LN2_HIGH) - kf * _LN2_LOW
    tail = (((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2
    bits = (k + np.int32(127)) << np.int32(23)
    # numba types an intrinsic as if its caller passed the compiler's context as well
    return (tail * r * r + r + _ONE) * _float_from_bits(bits)  # type: ignore[call-arg]


@_compile
def exp(x: Any) -> Any:
    """Exponentiate a float32; below -87.3 and above 87.3 the result stays as it is there."""
    x = min(max(x, -_MAX_EXPONENT), _MAX_EXPONENT)
    return _exp(x, np.int32(np.floor(x * _LOG2_E + _HALF)))


@_compile
def exp_nonpositive(x: Any) -> Any:
    """Return exp(x) for a float32 x <= 0; below -87.3 it stays at exp(-87.3), about 1e-38."""
    x = max(x, -_MAX_EXPONENT)
    return _exp(x, np.int32(x * _LOG2_E - _HALF))


@_compile
def softplus(x: Any) -> Any:
    """Return log(1 + exp(x)) for a float32 x, keeping relative accuracy for very negative x."""
    tail = exp_nonpositive(-abs(x))
    # log(1 + t) = 2 atanh(s), and s is at most a third
    s = tail / (_TWO + tail)
    s2 = s * s
    return max(x, _ZERO) + ((((_L9 * s2 + _L7) * s2 + _L5) * s2 + _L3) * s2 + _L1) * s


@_compile
def silu(x: Any) -> Any:
    """Return x / (1 + exp(-x)) for a float32 x."""
    tail = exp_nonpositive(-abs(x))
    return (max(x, _ZERO) + min(x, _ZERO) * tail) / (_ONE + tail)


@_compile
def _load_span(A_log: Any, state: Any) -> Any:
    """Return A and the state as [group, d_state, lane]; a narrow last group is padded."""
    channels, d_state = A_log.shape
    groups = (channels + _LANES - 1) // _LANES
    A = np.zeros((groups, d_state, _LANES), _f)
    h = np.zeros((groups, d_state, _LANES), _f)
    for group in range(groups):
        channel = group * _LANES
        for n in range(d_state):
            for lane in range(min(_LANES, channels - channel)):
                A[group, n, lane] = A_log[channel + lane, n]
                h[group, n, lane] = state[channel + lane, n]
        for n in range(d_state):
            for lane in range(_LANES):
                A[group, n, lane] = -exp(A[group, n, lane])
    return A, h


@_compile
def _ask(rows: Any, b: Any, t: Any, first: Any) -> None:
    """Prefetch a span of a row: rows lie so far apart that the machine does not see them coming."""
    line = rows.ctypes.data + ((b * rows.shape[1] + t) * rows.shape[2] + first) * 4
    for offset in range(0, _SPAN * 4, _LINE_BYTES):
        _prefetch(np.int64(line + offset))


@_compile
def _load(source: Any, b: Any, t: Any, first: Any, row: Any, channels: Any) -> None:
    # not a slice assignment, which guards against overlaps that cannot be, at several times the cost
    for i in range(channels):
        row[i] = source[b, t, first + i]


@_compile
def _prepare(skip: Any, bias: Any, u_row: Any, dt_row: Any, tiles: Any, t: Any) -> None:
    """Fill one step of a span's tiles: delta, delta * u and the skip, each [group, step, lane]."""
    delta, delta_u, acc = tiles[0], tiles[1], tiles[2]
    for group in range(acc.shape[0]):
        for lane in range(_LANES):
            delta[group, t, lane] = softplus(dt_row[group, lane] + bias[group, lane])
            delta_u[group, t, lane] = delta[group, t, lane] * u_row[group, lane]
            acc[group, t, lane] = skip[group, lane] * u_row[group, lane]


@_compile
def _advance(delta: Any, delta_u: Any, acc: Any, A: Any, h: Any, B: Any, C: Any) -> None:
    """Move one group's state over one tile, in place; add its part of the output to the skip."""
    d_state = A.shape[0]
    for n in range(0, d_state - 1, 2):
        _advance_two(delta, delta_u, acc, A[n : n + 2], h[n : n + 2], B[:, n:], C[:, n:])
    if d_state % 2:
        n = d_state - 1
        _advance_one(delta, delta_u, acc, A[n], h[n], B[:, n:], C[:, n:])


@_compile
def _advance_two(delta: Any, delta_u: Any, acc: Any, A: Any, h: Any, B: Any, C: Any) -> None:
    """Move two states of 16 channels: either's exp fills the time in which the other waits for its own."""
    rate, next_rate = np.empty(_LANES, _f), np.empty(_LANES, _f)
    row, next_row = np.empty(_LANES, _f), np.empty(_LANES, _f)
    for lane in range(_LANES):
        rate[lane], next_rate[lane] = A[0, lane], A[1, lane]
        row[lane], next_row[lane] = h[0, lane], h[1, lane]
    for t in range(B.shape[0]):
        b, next_b, c, next_c = B[t, 0], B[t, 1], C[t, 0], C[t, 1]
        for lane in range(_LANES):
            decay = exp_nonpositive(delta[t, lane] * rate[lane])
            next_decay = exp_nonpositive(delta[t, lane] * next_rate[lane])
            row[lane] = decay * row[lane] + delta_u[t, lane] * b
            next_row[lane] = next_decay * next_row[lane] + delta_u[t, lane] * next_b
            part = acc[t, lane] + row[lane] * c
            acc[t, lane] = part + next_row[lane] * next_c
    for lane in range(_LANES):
        h[0, lane], h[1, lane] = row[lane], next_row[lane]


@_compile
def _advance_one(delta: Any, delta_u: Any, acc: Any, A: Any, h: Any, B: Any, C: Any) -> None:
    """Move the last state of an odd number."""
    for t in range(B.shape[0]):
        for lane in range(_LANES):
            decay = exp_nonpositive(delta[t, lane] * A[lane])
            h[lane] = decay * h[lane] + delta_u[t, lane] * B[t, 0]
            acc[t, lane] += h[lane] * C[t, 0]


@_compile
def _gate(acc: Any, t: Any, row: Any, flat: Any) -> None:
    """Turn a row of gates into outputs, in place; both arguments are that row."""
    # over a whole span: a loop of 16 lanes is unrolled before it can be vectorised
    for i in range(flat.size):
        flat[i] = silu(flat[i])
    for group in range(acc.shape[0]):
        for lane in range(_LANES):
            row[group, lane] *= acc[group, t, lane]


@_compile
def _step(inputs: Any, A_log: Any, B: Any, C: Any, h: Any, h_out: Any) -> Any:
    """Move one channel by one step, its states side by side as they lie; returns the output."""
    u, dt, skip, z = inputs
    delta = softplus(dt)
    delta_u = delta * u
    for n in range(h.size):
        decay = exp_nonpositive(delta * -exp(A_log[n]))
        h_out[n] = decay * h[n] + delta_u * B[n]
    acc = skip * u
    for n in range(h.size):
        acc += h_out[n] * C[n]
    return silu(z) * acc


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
    b = task // spans
    first = task % spans * _SPAN
    end = min(first + _SPAN, d_inner)
    if seq_len == 1:
        for c in range(first, end):
            inputs = (u[b, 0, c], dt[b, 0, c] + dt_bias[c], D[c], z[b, 0, c])
            y[b, 0, c] = _step(inputs, A_log[c], B[b, 0], C[b, 0], state[b, c], state_out[b, c])
        return
    A, h = _load_span(A_log[first:end], state[b, first:end])
    channels = end - first
    u_row, dt_row = np.zeros((_GROUPS, _LANES), _f), np.zeros((_GROUPS, _LANES), _f)
    skip, bias = np.zeros((_GROUPS, _LANES), _f), np.zeros((_GROUPS, _LANES), _f)
    u_flat, dt_flat = u_row.ravel(), dt_row.ravel()
    skip.ravel()[:channels] = D[first:end]
    bias.ravel()[:channels] = dt_bias[first:end]
    tiles = np.empty((3, A.shape[0], min(_TILE, seq_len), _LANES), _f)
    for start in range(0, seq_len, _TILE):
        stop = min(start + _TILE, seq_len)
        for t in range(start, stop):
            _ask(u, b, t + _AHEAD, first)
            _ask(dt, b, t + _AHEAD, first)
            _ask(z, b, t, first)
            _ask(y, b, t, first)
            _load(u, b, t, first, u_flat, channels)
            _load(dt, b, t, first, dt_flat, channels)
            _prepare(skip, bias, u_row, dt_row, tiles, t - start)
        for group in range(A.shape[0]):
            _advance(
                tiles[0, group],
                tiles[1, group],
                tiles[2, group],
                A[group],
                h[group],
                B[b, start:stop],
                C[b, start:stop],
            )
        for t in range(start, stop):
            _load(z, b, t, first, u_flat, channels)
            _gate(tiles[2], t - start, u_row, u_flat)
            for i in range(channels):
                y[b, t, first + i] = u_flat[i]
    for group in range(h.shape[0]):
        channel = first + group * _LANES
        for lane in range(min(_LANES, end - channel)):
            for n in range(h.shape[1]):
                state_out[b, channel + lane, n] = h[group, n, lane]


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
