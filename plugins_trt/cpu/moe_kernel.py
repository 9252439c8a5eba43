"""The mixture of experts over stored experts: routing, then gate and up, then down.

Tokens are sorted by expert; a slot is one token of one expert. Each expert's slots pass its weights together, a block of
weight rows a task. A token's slots are summed last, in ascending order of experts, so that a result does not depend on
threads.

Values: x, router_logits, then either gate_up and down stacked over experts, with scales after them if they are codes, or
gate, up and down of each expert.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.plugins_trt.cpu.call_frame import (
    ATTRIBUTES,
    FREE,
    NUM_INPUTS,
    PHASE,
    PLAN,
    SCRATCH,
    array_at,
    bytes_at,
    dim,
    element_type,
    frame_words,
    matrix,
)
from longllava_trt.plugins_trt.cpu.elementwise import copy, exp, multiply_silu
from longllava_trt.plugins_trt.cpu.linear_kernel import blocks, columns_for
from longllava_trt.plugins_trt.cpu.stored_matrix import UINT8, from_row, multiply
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import GROUP

__all__ = ["moe_activate", "moe_combine", "moe_down", "moe_gather", "moe_plan", "moe_route"]

_ROWS = 256
_INTERMEDIATE = FREE

_compile = numba.njit(error_model="numpy", cache=True)


@_compile
def _is_stacked(frame: Any) -> Any:
    """Tell 4 inputs, or 6 with scales, from 2 and three an expert."""
    return frame[NUM_INPUTS] == 4 or frame[NUM_INPUTS] == 6


@_compile
def _is_packed(frame: Any) -> Any:
    return element_type(frame, 2) == UINT8


@_compile
def _slots(frame: Any) -> Any:
    """Return how many pairs of a token and one of its experts there are."""
    return dim(frame, 0, 0) * frame[ATTRIBUTES]


@_compile
def _packs(frame: Any, inner: Any) -> Any:
    """Tell whether packed codes and the scales of their groups are as wide as they must be."""
    hidden = dim(frame, 0, 1)
    return (
        2 * dim(frame, 2, 2) == hidden
        and 2 * dim(frame, 3, 2) == inner
        and dim(frame, 4, 2) == blocks(hidden, GROUP)
        and dim(frame, 5, 2) == blocks(inner, GROUP)
    )


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def moe_plan(address: Any) -> Any:
    """Ask for room for the routing and for what is between the two products."""
    frame = frame_words(address)
    experts, top_k = dim(frame, 1, 1), frame[ATTRIBUTES]
    if not 1 <= top_k <= experts:
        return 1
    if not _is_stacked(frame):
        inner = dim(frame, 2, 0)
        fits = frame[NUM_INPUTS] == 2 + 3 * experts
    else:
        inner = dim(frame, 2, 1) // 2
        fits = not _is_packed(frame) or _packs(frame, inner)
    if not fits:
        return 1
    frame[_INTERMEDIATE] = inner
    slots = _slots(frame)
    # int64 takes two places: tokens, a token's slots, experts that are used, where each expert's slots begin
    width = dim(frame, 0, 1) + frame[_INTERMEDIATE]
    frame[SCRATCH] = 2 * (slots + slots + experts + experts + 1) + slots + slots * width
    frame[0] = 1
    return 0


@_compile
def _scratch(frame: Any) -> Any:
    """Return tokens and routing weights by slot, slots by token, active experts, first slot of each expert, two tensors.

    The tensors are by slot: the inputs, in whose place the outputs come, and what is between.
    """
    slots, experts = _slots(frame), dim(frame, 1, 1)
    place = bytes_at(frame, frame[NUM_INPUTS] + 1)
    tokens = array_at(place, (slots,), np.int64)
    place += 8 * slots
    slots_of = array_at(place, (dim(frame, 0, 0), frame[ATTRIBUTES]), np.int64)
    place += 8 * slots
    active = array_at(place, (experts,), np.int64)
    place += 8 * experts
    first = array_at(place, (experts + 1,), np.int64)
    place += 8 * (experts + 1)
    weights = array_at(place, (slots,), np.float32)
    place += 4 * slots
    x = array_at(place, (slots, dim(frame, 0, 1)), np.float32)
    place += 4 * x.size
    hidden = array_at(place, (slots, frame[_INTERMEDIATE]), np.float32)
    return tokens, weights, slots_of, active, first, x, hidden


@_compile
def _choose(logits: Any, chosen: Any, weights: Any) -> None:
    """Write the most probable experts of a token, the lower number first among equals, and their probabilities."""
    most = logits[0]
    for e in range(logits.size):
        most = max(most, logits[e])
    total = np.float32(0)
    for e in range(logits.size):
        total += exp(logits[e] - most)
    for k in range(chosen.size):
        best = -1
        for e in range(logits.size):
            taken = False
            for j in range(k):
                taken |= chosen[j] == e
            if not taken and (best < 0 or logits[e] > logits[best]):
                best = e
        chosen[k] = best
        weights[k] = exp(logits[best] - most) / total


@_compile
def _insert(ascending: Any, count: Any, slot: Any) -> None:
    """Put a slot in its place among N; slots ascend as experts do."""
    while count and ascending[count - 1] > slot:
        ascending[count] = ascending[count - 1]
        count -= 1
    ascending[count] = slot


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def moe_route(address: Any, _task: Any) -> None:
    """Choose each token's experts, sort the tokens by expert, and set the tasks of the products."""
    frame = frame_words(address)
    logits = matrix(frame, 1)
    tokens, weights, slots_of, active, first, x, hidden = _scratch(frame)
    num_tokens, top_k = logits.shape[0], frame[ATTRIBUTES]
    chosen = np.empty((num_tokens, top_k), np.int64)
    shares = np.empty((num_tokens, top_k), np.float32)
    first[:] = 0
    for t in range(num_tokens):
        _choose(logits[t], chosen[t], shares[t])
        for k in range(top_k):
            first[chosen[t, k] + 1] += 1
    used = 0
    for e in range(logits.shape[1]):
        if first[e + 1]:
            active[used] = e
            used += 1
        first[e + 1] += first[e]
    place = first[:-1].copy()
    for t in range(num_tokens):
        for k in range(top_k):
            slot = place[chosen[t, k]]
            place[chosen[t, k]] += 1
            tokens[slot], weights[slot] = t, shares[t, k]
            _insert(slots_of[t], k, slot)
    columns = columns_for(num_tokens)
    frame[1] = blocks(x.shape[0], _ROWS)
    frame[2] = used * blocks(hidden.shape[1], columns)
    frame[3] = used * blocks(x.shape[1], columns)
    frame[4] = blocks(num_tokens, _ROWS)


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def moe_gather(address: Any, task: Any) -> None:
    """Copy a block of the tokens into the order of their experts."""
    frame = frame_words(address)
    tokens, _weights, _slots_of, _active, _first, x, _hidden = _scratch(frame)
    source, top = matrix(frame, 0), np.int64(task) * _ROWS
    for slot in range(top, min(top + _ROWS, tokens.size)):
        copy(source[tokens[slot]].ctypes.data, x[slot].ctypes.data, x.shape[1])


@_compile
def _stored(frame: Any, value: Any, row: Any) -> Any:
    """Return a value as a stored matrix, from a row on."""
    scales = bytes_at(frame, value + 2) if frame[NUM_INPUTS] == 6 else np.int64(0)
    return bytes_at(frame, value), element_type(frame, value), np.int64(row), scales


@_compile
def _matrices(frame: Any, expert: Any) -> Any:
    """Return gate, up and down of an expert."""
    if not _is_stacked(frame):
        first = 2 + 3 * expert
        return _stored(frame, first, 0), _stored(frame, first + 1, 0), _stored(frame, first + 2, 0)
    inner, hidden = frame[_INTERMEDIATE], dim(frame, 0, 1)
    return (
        _stored(frame, 2, 2 * expert * inner),
        _stored(frame, 2, (2 * expert + 1) * inner),
        _stored(frame, 3, expert * hidden),
    )


@_compile
def _add_weighted(row: Any, weight: Any, total: Any) -> None:
    # rows, not matrices: of a part of a matrix Numba does not know that its rows are contiguous
    for j in range(row.size):
        total[j] += weight * row[j]


@_compile
def _share(frame: Any, task: Any, width: Any) -> Any:
    """Return the expert, its slots and the columns, of N, that a task of a product is for."""
    _tokens, _weights, _slots_of, active, first, _x, _hidden = _scratch(frame)
    columns = columns_for(dim(frame, 0, 0))
    across = blocks(width, columns)
    expert, left = active[np.int64(task) // across], np.int64(task) % across * columns
    return expert, first[expert], first[expert + 1], left, min(left + columns, width)


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def moe_activate(address: Any, task: Any) -> None:
    """Compute silu(gate) * up for all slots of one expert and one block of its columns."""
    frame = frame_words(address)
    _tokens, _weights, _slots_of, _active, _first, x, hidden = _scratch(frame)
    expert, begin, end, left, right = _share(frame, task, hidden.shape[1])
    gate, up, _down = _matrices(frame, expert)
    # another block of rows each time round, so that what is between stays in the cache
    room = np.empty((2, min(_ROWS, end - begin), right - left), np.float32)
    step = room.strides[1]
    for top in range(begin, end, _ROWS):
        bottom = min(top + _ROWS, end)
        gated, lifted = room[0, : bottom - top], room[1, : bottom - top]
        multiply(x[top:bottom], from_row(gate, left), gated, from_row(up, left))
        multiply(x[top:bottom], from_row(up, left), lifted, from_row(gate, right))
        z, values, place = gated.ctypes.data, lifted.ctypes.data, hidden[top:, left:].ctypes.data
        for i in range(bottom - top):
            row = place + i * hidden.strides[0]
            multiply_silu(z + i * step, values + i * step, row, right - left)


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def moe_down(address: Any, task: Any) -> None:
    """Compute one block of output columns for all slots of one expert."""
    frame = frame_words(address)
    _tokens, _weights, _slots_of, _active, _first, x, hidden = _scratch(frame)
    expert, begin, end, left, right = _share(frame, task, x.shape[1])
    _gate, _up, down = _matrices(frame, expert)
    for top in range(begin, end, _ROWS):
        bottom = min(top + _ROWS, end)
        multiply(
            hidden[top:bottom],
            from_row(down, left),
            x[top:bottom, left:right],
            from_row(down, right),
        )


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def moe_combine(address: Any, task: Any) -> None:
    """Sum the slots of a block of tokens."""
    frame = frame_words(address)
    _tokens, weights, slots_of, _active, _first, x, _hidden = _scratch(frame)
    y, top = matrix(frame, frame[NUM_INPUTS]), np.int64(task) * _ROWS
    for t in range(top, min(top + _ROWS, y.shape[0])):
        y[t] = 0
        for slot in slots_of[t]:
            _add_weighted(x[slot], weights[slot], y[t])
