"""The selective scan as ONNX Runtime calls it: 64 steps a tile, 128 channels a task.

A task makes delta, delta * u and the skip row by row, as they lie in memory, then moves one vector of channels after
another over all steps of the tile (`scan_tile`), then gates row by row. Tiles and states stay in the second-level cache.
Everything goes by addresses: slicing arrays for each vector would cost as much as a step.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.plugins_trt.cpu.call_frame import PHASE, PLAN, bytes_at, dim, frame_words
from longllava_trt.plugins_trt.cpu.elementwise import multiply_silu
from longllava_trt.plugins_trt.cpu.linear_kernel import blocks
from longllava_trt.plugins_trt.cpu.scan_tile import advance, ask, prepare, turn_rates
from longllava_trt.plugins_trt.cpu.transpose import turn
from longllava_trt.plugins_trt.cpu.vector_ir import LANES
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN

__all__ = ["scan_phase", "scan_plan"]

_U, _DT, _A_LOG, _B, _C, _D, _Z, _DT_BIAS, _STATE, _Y, _STATE_OUT = range(
    len(SELECTIVE_SCAN.inputs) + len(SELECTIVE_SCAN.outputs)
)
_SPAN = 128
_TILE = 64
# rows a power of two apart would meet in few places of the first-level cache
_ROW = _SPAN + 16

_compile = numba.njit(error_model="numpy", cache=True)


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def scan_plan(address: Any) -> Any:
    """Make a task of each span of channels of each batch entry."""
    frame = frame_words(address)
    frame[0] = dim(frame, _U, 0) * blocks(dim(frame, _U, 2), _SPAN)
    return 0


@_compile
def _load_states(frame: Any, span: Any, A: Any, h: Any) -> None:
    """Bring A and the state into the form of the tiles; lanes without a channel stay as they are."""
    b, first, channels = span
    d_inner, d_state = dim(frame, _STATE, 1), dim(frame, _STATE, 2)
    row, block = 4 * d_state, A.strides[0]
    logs = bytes_at(frame, _A_LOG) + first * row
    states = bytes_at(frame, _STATE) + (b * d_inner + first) * row
    # a single step has nothing else to wait for
    ask(logs, channels * row)
    ask(states, channels * row)
    for v in range(A.shape[0]):
        count, past = min(channels - v * LANES, LANES), v * LANES * row
        turn_rates(logs + past, row, count, d_state, A.ctypes.data + v * block, 4 * LANES)
        turn(states + past, row, count, d_state, h.ctypes.data + v * block, 4 * LANES)


@_compile
def _store_states(frame: Any, span: Any, h: Any) -> None:
    b, first, channels = span
    d_inner, d_state = dim(frame, _STATE, 1), dim(frame, _STATE, 2)
    row, block = 4 * d_state, h.strides[0]
    states = bytes_at(frame, _STATE_OUT) + (b * d_inner + first) * row
    for v in range(h.shape[0]):
        count, past = min(channels - v * LANES, LANES), v * LANES * row
        turn(h.ctypes.data + v * block, 4 * LANES, d_state, count, states + past, row)


@_compile
def _prepare_tile(frame: Any, span: Any, start: Any, tiles: Any) -> None:
    b, first, channels = span
    step = 4 * dim(frame, _U, 2)
    past = (b * dim(frame, _U, 1) + start) * step + 4 * first
    u, dt = bytes_at(frame, _U) + past, bytes_at(frame, _DT) + past
    skip, bias = bytes_at(frame, _D) + 4 * first, bytes_at(frame, _DT_BIAS) + 4 * first
    array, row = tiles.strides[0], tiles.strides[1]
    for t in range(tiles.shape[1]):
        place = tiles.ctypes.data + t * row
        prepare(u + t * step, dt + t * step, skip, bias, place, array, channels)


@_compile
def _advance_tile(frame: Any, span: Any, start: Any, tiles: Any, A: Any, h: Any) -> None:
    d_state = dim(frame, _B, 2)
    step = 4 * d_state
    past = (span[0] * dim(frame, _B, 1) + start) * step
    B, C = bytes_at(frame, _B) + past, bytes_at(frame, _C) + past
    array, row, block = tiles.strides[0], tiles.strides[1], A.strides[0]
    for v in range(A.shape[0]):
        place = tiles.ctypes.data + v * 4 * LANES
        rates, states = A.ctypes.data + v * block, h.ctypes.data + v * block
        advance(place, row, array, tiles.shape[1], rates, states, B, C, step, d_state)


@_compile
def _gate_tile(frame: Any, span: Any, start: Any, tiles: Any) -> None:
    b, first, channels = span
    step = 4 * dim(frame, _U, 2)
    past = (b * dim(frame, _U, 1) + start) * step + 4 * first
    z, y = bytes_at(frame, _Z) + past, bytes_at(frame, _Y) + past
    outputs = tiles.ctypes.data + 2 * tiles.strides[0]
    for t in range(tiles.shape[1]):
        multiply_silu(z + t * step, outputs + t * tiles.strides[1], y + t * step, channels)


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def scan_phase(address: Any, task: Any) -> None:
    """Scan one span of channels of one batch entry; spans are counted across the batch."""
    frame = frame_words(address)
    seq_len, d_inner, d_state = dim(frame, _U, 1), dim(frame, _U, 2), dim(frame, _B, 2)
    spans = blocks(d_inner, _SPAN)
    first = np.int64(task) % spans * _SPAN
    channels = min(_SPAN, d_inner - first)
    span = (np.int64(task) // spans, first, channels)
    A = np.empty((blocks(channels, LANES), d_state, LANES), np.float32)
    h = np.empty_like(A)
    room = np.empty((3, min(_TILE, seq_len), _ROW), np.float32)
    _load_states(frame, span, A, h)
    for start in range(0, seq_len, _TILE):
        tiles = room[:, : min(_TILE, seq_len - start)]
        _prepare_tile(frame, span, start, tiles)
        _advance_tile(frame, span, start, tiles, A, h)
        _gate_tile(frame, span, start, tiles)
    _store_states(frame, span, h)
