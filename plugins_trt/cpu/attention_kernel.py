"""Causal attention over a cache of keys and values that is written in place.

New keys and values are appended to the cache; then blocks of queries pass over blocks of keys. Each block of
keys gives a partial result, its softmax taken for itself; partial results are merged in the order of the
keys. Blocks lie at fixed positions of the sequence, so a result has the same bits however the sequence was
cut into calls, and whether one task passes over all blocks of keys or each block is a task of its own, which
is done where there are few queries. Nothing beyond the last position is read.

Values: q, k, v as their projections give them, past_key, past_value, past_len; y, present_key,
present_value, scratch. The present cache may be the past one.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from longllava_trt.plugins_trt.cpu.call_frame import (
    FREE,
    PHASE,
    PLAN,
    SCRATCH,
    array_at,
    bytes_at,
    dim,
    frame_words,
    tensor,
)
from longllava_trt.plugins_trt.cpu.elementwise import copy, exp
from longllava_trt.plugins_trt.cpu.linear_kernel import blocks
from longllava_trt.plugins_trt.cpu.panel_kernel import (
    PANEL,
    ROWS,
    highest,
    multiply_panel,
    pack_transposed,
)

__all__ = ["attention_append", "attention_attend", "attention_merge", "attention_plan"]

_Q, _K, _V, _PAST_KEY, _PAST_VALUE, _PAST_LEN, _Y, _KEY, _VALUE, _SCRATCH = range(10)
_KEYS = 256
_QUERY_ROWS = 128
_ENOUGH_TASKS = 32
_DEPTH = 16
_WIDTH = 64
_GROUP, _QUERIES, _SHARES = FREE, FREE + 1, FREE + 2
_LOWEST = np.float32(np.finfo(np.float32).min)
_ONE = np.float32(1)

_compile = numba.njit(error_model="numpy", cache=True)
# a row may be summed in any order; exp keeps its own
_reduce = numba.njit(fastmath={"contract", "nsz", "reassoc"}, error_model="numpy", cache=True)


@_compile
def _past_len(frame: Any) -> Any:
    return array_at(bytes_at(frame, _PAST_LEN), (dim(frame, 0, 0),), np.int64)


@_compile
def _cache(frame: Any, index: Any) -> Any:
    """Return keys or values [batch, kv_heads, capacity, head_dim], float32."""
    shape = (dim(frame, index, 0), dim(frame, index, 1), dim(frame, index, 2), dim(frame, index, 3))
    return array_at(bytes_at(frame, index), shape, np.float32)


@_compile
def _by_head(frame: Any, index: Any) -> Any:
    """Return queries or outputs [batch, seq_len, heads, head_dim], float32."""
    head_dim = dim(frame, _PAST_KEY, 3)
    shape = (dim(frame, index, 0), dim(frame, index, 1), dim(frame, index, 2) // head_dim, head_dim)
    return array_at(bytes_at(frame, index), shape, np.float32)


@_compile
def _padded(size: Any, multiple: Any) -> Any:
    return blocks(size, multiple) * multiple


@numba.cfunc(PLAN, error_model="numpy", cache=True)
def attention_plan(address: Any) -> Any:
    """Make a task of each block of queries of each cached head, and of each block of keys if those are few."""
    frame = frame_words(address)
    batch, seq_len = dim(frame, _Q, 0), dim(frame, _Q, 1)
    heads, capacity, head_dim = (
        dim(frame, _PAST_KEY, 1),
        dim(frame, _PAST_KEY, 2),
        dim(frame, _PAST_KEY, 3),
    )
    if min(batch, seq_len, heads, head_dim, dim(frame, _Q, 2)) < 1:
        return 1
    if dim(frame, _Q, 2) % (heads * head_dim) or dim(frame, _K, 2) != heads * head_dim:
        return 1
    longest = np.int64(0)
    for past in _past_len(frame):
        if past < 0 or past > capacity - seq_len:
            return 1
        longest = max(longest, past + seq_len)
    group = dim(frame, _Q, 2) // (heads * head_dim)
    queries = max(_QUERY_ROWS // group, 1)
    tasks = batch * heads * blocks(seq_len, queries)
    shares = blocks(longest, _KEYS) if tasks < _ENOUGH_TASKS else np.int64(1)
    frame[_GROUP], frame[_QUERIES], frame[_SHARES] = group, queries, shares
    frame[0], frame[1], frame[2] = batch * heads, tasks * shares, 0
    if shares > 1:
        rows = _padded(queries * group, ROWS)
        frame[SCRATCH] = tasks * shares * rows * (_padded(head_dim, PANEL) + 2)
        frame[2] = tasks
    return 0


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def attention_append(address: Any, task: Any) -> None:
    """Write one head's new keys and values behind the past ones, which are copied unless they are there."""
    frame = frame_words(address)
    heads, head_dim = dim(frame, _PAST_KEY, 1), dim(frame, _PAST_KEY, 3)
    b, head = np.int64(task) // heads, np.int64(task) % heads
    first = _past_len(frame)[b]
    for source, past, present in ((_K, _PAST_KEY, _KEY), (_V, _PAST_VALUE, _VALUE)):
        kept, cache = _cache(frame, past)[b, head], _cache(frame, present)[b, head]
        if bytes_at(frame, past) != bytes_at(frame, present):
            copy(kept.ctypes.data, cache.ctypes.data, cache.size)
        new = tensor(frame, source)[b, :, head * head_dim : (head + 1) * head_dim]
        for t in range(new.shape[0]):
            copy(new[t].ctypes.data, cache[first + t].ctypes.data, head_dim)


@_compile
def _block_of(frame: Any, task: Any) -> Any:
    """Return batch entry, cached head, first query and one past the last; later queries, which cost more, first."""
    heads, seq_len, queries = dim(frame, _PAST_KEY, 1), dim(frame, _Q, 1), frame[_QUERIES]
    sequences = dim(frame, _Q, 0) * heads
    first = (blocks(seq_len, queries) - 1 - task // sequences) * queries
    sequence = task % sequences
    return sequence // heads, sequence % heads, first, min(first + queries, seq_len)


@_compile
def _gather(q: Any, head: Any, group: Any) -> Any:
    """Return the scaled queries of the heads that share a cached one, [query * group + head, head_dim], padded."""
    queries, _, head_dim = q.shape
    scale = _ONE / np.float32(np.sqrt(np.float32(head_dim)))
    rows = np.zeros((_padded(queries * group, ROWS), head_dim), np.float32)
    for t in range(queries):
        for g in range(group):
            for d in range(head_dim):
                rows[t * group + g, d] = q[t, head * group + g, d] * scale
    return rows


@_reduce
def _exponentiate(scores: Any, top: Any) -> Any:
    """Replace scores by exp(score - top); returns their sum."""
    total = np.float32(0)
    for j in range(scores.size):
        scores[j] = exp(scores[j] - top)
        total += scores[j]
    return total


@_compile
def _attend(
    rows: Any, keys: Any, values: Any, sees: Any, group: Any, buffers: Any, part: Any
) -> None:
    """Compute the partial result of one block of keys.

    Args:
        rows: Queries, of `_gather`.
        keys: [keys, head_dim], float32.
        values: [keys, head_dim], float32.
        sees: Number of keys that the first query sees; each further query sees one more.
        group: Rows of a query.
        buffers: Panels of keys and scores, to work in.
        part: Highest score, sum of exponentials and weighed values of every row; written.
    """
    panels, scores = buffers
    top, total, acc = part
    count, head_dim = keys.shape
    pack_transposed(keys, panels)
    for first in range(0, count, PANEL):
        panel = panels[first // PANEL].ctypes.data
        multiply_panel(
            rows, (panel, PANEL * 4, PANEL, head_dim), scores[:, first:], False, (panel, 0, 1, 1)
        )
    for r in range(rows.shape[0]):
        seen = min(max(sees + r // group, 0), count)
        # as wide as the row alone asks for: the order of its sum depends on the width
        row = scores[r, : _padded(seen, _WIDTH)]
        row[seen:] = _LOWEST
        top[r], total[r] = _LOWEST, 0
        if seen:
            top[r] = highest(row)
            total[r] = _exponentiate(row, top[r])
        scores[r, seen:count] = 0
    for first in range(0, head_dim, PANEL):
        place, left = values.ctypes.data + first * 4, head_dim - first
        multiply_panel(
            scores, (place, values.strides[0], left, count), acc[:, first:], False, (place, 0, 1, 1)
        )


@_compile
def _merge(into: Any, part: Any, head_dim: Any) -> None:
    """Add the partial result of the keys that follow."""
    for r in range(into[0].size):
        top = max(into[0][r], part[0][r])
        before, now = exp(into[0][r] - top), exp(part[0][r] - top)
        into[0][r] = top
        into[1][r] = into[1][r] * before + part[1][r] * now
        for d in range(head_dim):
            into[2][r, d] = into[2][r, d] * before + part[2][r, d] * now


@_compile
def _nothing(rows: Any, width: Any) -> Any:
    """Return the partial result of no keys."""
    return (
        np.full(rows, _LOWEST, np.float32),
        np.zeros(rows, np.float32),
        np.zeros((rows, width), np.float32),
    )


@_compile
def _part(frame: Any, number: Any, rows: Any) -> Any:
    """Return the place of a partial result in the scratch."""
    width = _padded(dim(frame, _PAST_KEY, 3), PANEL)
    size = _padded(frame[_QUERIES] * frame[_GROUP], ROWS) * (width + 2) * 4
    place = bytes_at(frame, _SCRATCH) + number * size
    return (
        array_at(place, (rows,), np.float32),
        array_at(place + rows * 4, (rows,), np.float32),
        array_at(place + rows * 8, (rows, width), np.float32),
    )


@_compile
def _finish(result: Any, head: Any, group: Any, y: Any) -> None:
    """Write what is merged to the outputs of the heads that share a cached one."""
    for t in range(y.shape[0]):
        for g in range(group):
            r = t * group + g
            share = _ONE / result[1][r]
            for d in range(y.shape[2]):
                y[t, head * group + g, d] = result[2][r, d] * share


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def attention_attend(address: Any, task: Any) -> None:
    """Pass a block of queries over all keys, or over one block of them."""
    frame = frame_words(address)
    shares, group, head_dim = frame[_SHARES], frame[_GROUP], dim(frame, _PAST_KEY, 3)
    share = np.int64(task) % shares
    b, head, begin, end = _block_of(frame, np.int64(task) // shares)
    past = _past_len(frame)[b]
    if shares > 1 and share * _KEYS >= past + end:
        return
    rows = _gather(_by_head(frame, _Q)[b, begin:end], head, group)
    keys, values = _cache(frame, _KEY)[b, head], _cache(frame, _VALUE)[b, head]
    buffers = (
        np.empty((_KEYS // PANEL, _padded(head_dim, _DEPTH), PANEL), np.float32),
        np.empty((rows.shape[0], _KEYS), np.float32),
    )
    if shares > 1:
        first = share * _KEYS
        last = min(first + _KEYS, past + end)
        part = _part(frame, np.int64(task), rows.shape[0])
        sees = past + begin + 1 - first
        _attend(rows, keys[first:last], values[first:last], sees, group, buffers, part)
        return
    part = _nothing(rows.shape[0], _padded(head_dim, PANEL))
    result = _nothing(rows.shape[0], _padded(head_dim, PANEL))
    for first in range(0, past + end, _KEYS):
        last = min(first + _KEYS, past + end)
        sees = past + begin + 1 - first
        _attend(rows, keys[first:last], values[first:last], sees, group, buffers, part)
        _merge(result, part, head_dim)
    _finish(result, head, group, _by_head(frame, _Y)[b, begin:end])


@numba.cfunc(PHASE, error_model="numpy", cache=True)
def attention_merge(address: Any, task: Any) -> None:
    """Merge a block of queries' partial results."""
    frame = frame_words(address)
    shares, group, head_dim = frame[_SHARES], frame[_GROUP], dim(frame, _PAST_KEY, 3)
    b, head, begin, end = _block_of(frame, np.int64(task))
    rows = _padded((end - begin) * group, ROWS)
    result = _nothing(rows, head_dim)
    for share in range(blocks(_past_len(frame)[b] + end, _KEYS)):
        _merge(result, _part(frame, np.int64(task) * shares + share, rows), head_dim)
    _finish(result, head, group, _by_head(frame, _Y)[b, begin:end])
