"""The causal depthwise convolution with its state and SiLU, channels last: a vector runs across channels.

A single step takes no room of its own: what it would write there would come from memory, as all else it reads does.

Values: x, weight, bias, state; y, state_out.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.plugins_trt.cpu.call_frame import PHASE, PLAN, dim, floats, frame_words, tensor
from longllava_trt.plugins_trt.cpu.elementwise import copy, silu
from longllava_trt.plugins_trt.cpu.linear_kernel import blocks
from longllava_trt.plugins_trt.cpu.transpose import turn

__all__ = ["conv_phase", "conv_plan"]

_CHANNELS = 1024
_STEPS = 32

_compile = numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)


@_compile
def _transposed(rows: Any) -> Any:
    """Return [channel, step] as [step, channel]."""
    channels, steps = rows.shape
    turned = np.empty((steps, channels), np.float32)
    turn(rows.ctypes.data, rows.strides[0], channels, steps, turned.ctypes.data, turned.strides[0])
    return turned


@_compile
def _weigh(column: Any, tap: Any, acc: Any) -> None:
    for c in range(acc.size):
        acc[c] += tap[c] * column[c]


@_compile
def _convolve(x: Any, past: Any, taps: Any, bias: Any, left: Any, begin: Any, y: Any) -> None:
    """Weigh what each step from ``begin`` on sees, oldest first, and activate; ``y`` begins there."""
    before, right = past.shape[0], left + bias.size
    acc = np.empty(bias.size, np.float32)
    for t in range(y.shape[0]):
        copy(bias.ctypes.data, acc.ctypes.data, acc.size)
        for k in range(taps.shape[0]):
            seen = begin + t + k - before
            if seen < 0:
                _weigh(past[before + seen], taps[k], acc)
            else:
                _weigh(x[seen, left:right], taps[k], acc)
        row = y[t, left:right]
        for c in range(acc.size):
            row[c] = silu(acc[c])


@_compile
def _carry(x: Any, past: Any, left: Any, state_out: Any) -> None:
    """Write the last columns of the state and x together."""
    seq_len, (before, channels) = x.shape[0], past.shape
    for k in range(before):
        seen = seq_len + k - before
        for c in range(channels):
            state_out[c, k] = past[before + seen, c] if seen < 0 else x[seen, left + c]


@_compile
def _step(x: Any, weight: Any, bias: Any, state: Any, y: Any, state_out: Any) -> None:
    """Move every channel by one step, its weights and its state side by side as they lie."""
    before = state.shape[1]
    for c in range(x.size):
        acc = bias[c]
        for k in range(before):
            acc += weight[c, k] * state[c, k]
        y[c] = acc + weight[c, before] * x[c]
        for k in range(before - 1):
            state_out[c, k] = state[c, k + 1]
        if before:
            state_out[c, before - 1] = x[c]
    for c in range(y.size):
        y[c] = silu(y[c])


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def conv_plan(address: Any) -> Any:
    """Make a task of each block of channels of each block of steps of each batch entry."""
    frame = frame_words(address)
    batch, seq_len, channels = dim(frame, 0, 0), dim(frame, 0, 1), dim(frame, 0, 2)
    width = dim(frame, 1, 2)
    if min(batch, seq_len, channels, width) < 1:
        return 1
    if dim(frame, 1, 1) != 1 or dim(frame, 3, 2) != width - 1:
        return 1
    frame[0] = batch * blocks(seq_len, _STEPS) * blocks(channels, _CHANNELS)
    return 0


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def conv_phase(address: Any, task: Any) -> None:
    """Convolve one block; the last steps write the state."""
    frame = frame_words(address)
    x, weight, bias, state = tensor(frame, 0), tensor(frame, 1), floats(frame, 2), tensor(frame, 3)
    y, state_out = tensor(frame, 4), tensor(frame, 5)
    seq_len, channels = x.shape[1:]
    across, along = blocks(channels, _CHANNELS), blocks(seq_len, _STEPS)
    left, begin = np.int64(task) % across * _CHANNELS, np.int64(task) // across % along * _STEPS
    b = np.int64(task) // (across * along)
    right, end = min(left + _CHANNELS, channels), min(begin + _STEPS, seq_len)
    if seq_len == 1:
        _step(
            x[b, 0, left:right],
            weight[left:right, 0],
            bias[left:right],
            state[b, left:right],
            y[b, 0, left:right],
            state_out[b, left:right],
        )
        return
    past, taps = _transposed(state[b, left:right]), _transposed(weight[left:right, 0])
    _convolve(x[b], past, taps, bias[left:right], left, begin, y[b, begin:end])
    if end == seq_len:
        _carry(x[b], past, left, state_out[b, left:right])
