"""The scan's kernels for many tokens, in two levels over time.

1. `scan_summaries`: each chunk's end state from a zero start, and its sum of delta.
2. `scan_prefix`: the true start state of every chunk. A chunk's decay is exp(A * sum of delta), so
   the sums are stored, a sixteenth of the decays.
3. `scan_outputs`: every chunk again from its true start; skip, gate and the final state.

A program is one warp that goes through its chunk with the states of 32 channels in registers, one
channel for each thread, so threads exchange nothing; meanwhile the next token is loaded. Arithmetic
is float32. Every exponential except exp(A_log) has an argument <= 0, so none overflows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.elementwise import (
    advance,
    load_rates,
    load_vector,
    silu,
    softplus,
)

__all__ = ["scan_outputs", "scan_prefix", "scan_summaries"]


@triton.jit  # type: ignore[untyped-decorator]
def scan_summaries(
    u: tl.tensor,
    dt: tl.tensor,
    A_log: tl.tensor,
    B: tl.tensor,
    dt_bias: tl.tensor,
    chunk_states: tl.tensor,
    chunk_deltas: tl.tensor,
    seq_len: int,
    d_inner: int,
    chunk_len: int,
    d_state: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
) -> None:
    """Summarise every chunk but the last. Grid: [channel blocks, slots, batch].

    Args:
        u: [batch, seq_len, d_inner], T.
        dt: [batch, seq_len, d_inner], T.
        A_log: [d_inner, d_state], T.
        B: [batch, seq_len, d_state], T.
        dt_bias: [d_inner], T.
        chunk_states: Written: end states from zero. [batch, slots, d_inner, d_state], float32.
        chunk_deltas: Written: sums of delta. [batch, slots, d_inner], float32.
        seq_len: Tokens.
        d_inner: Channels.
        chunk_len: Tokens of a chunk.
        d_state: States of a channel.
        block_channels: Channels of a program, a power of two.
        block_states: ``d_state`` rounded up to a power of two.
    """
    slot, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    states = tl.arange(0, block_states)
    is_channel, is_state = channels < d_inner, states < d_state
    is_element = is_channel[:, None] & is_state[None, :]
    elements = channels[:, None] * d_state + states[None, :]
    rates = load_rates(A_log, elements, is_element)
    bias = load_vector(dt_bias + channels, is_channel)
    token = row * seq_len + slot * chunk_len

    h = tl.zeros([block_channels, block_states], tl.float32)
    total = tl.zeros([block_channels], tl.float32)
    u_next = load_vector(u + token * d_inner + channels, is_channel)
    dt_next = load_vector(dt + token * d_inner + channels, is_channel)
    for _ in range(chunk_len):
        delta = softplus(dt_next + bias)
        delta_u = delta * u_next
        total += delta
        b_t = load_vector(B + token * d_state + states, is_state)
        # the token after a chunk that is not the last is always there
        token += 1
        u_next = load_vector(u + token * d_inner + channels, is_channel)
        dt_next = load_vector(dt + token * d_inner + channels, is_channel)
        h = advance(h, rates, delta, delta_u, b_t)
    place = (row * tl.num_programs(1) + slot) * d_inner
    tl.store(chunk_states + place * d_state + elements, h, mask=is_element)
    tl.store(chunk_deltas + place + channels, total, mask=is_channel)


@triton.jit  # type: ignore[untyped-decorator]
def scan_prefix(
    A_log: tl.tensor,
    state: tl.tensor,
    chunk_states: tl.tensor,
    chunk_deltas: tl.tensor,
    d_inner: int,
    slots: int,
    d_state: tl.constexpr,
    block_elements: tl.constexpr,
) -> None:
    """Turn each slot's end state from zero into its true end state. Grid: [blocks, batch].

    end = exp(A * sum of delta) * start + end from zero; a slot's end is the next chunk's start.

    Args:
        A_log: [d_inner, d_state], T.
        state: State before the first token. [batch, d_inner, d_state], float32.
        chunk_states: Read and written. [batch, slots, d_inner, d_state], float32.
        chunk_deltas: [batch, slots, d_inner], float32.
        d_inner: Channels.
        slots: Chunks but the last.
        d_state: States of a channel.
        block_elements: Elements of a program, a power of two.
    """
    row = tl.program_id(1).to(tl.int64)
    elements = tl.program_id(0) * block_elements + tl.arange(0, block_elements)
    is_element = elements < d_inner * d_state
    rates = load_rates(A_log, elements, is_element)
    h = load_vector(state + row * d_inner * d_state + elements, is_element)
    for slot in range(slots):
        place = (row * slots + slot) * d_inner
        delta = load_vector(chunk_deltas + place + elements // d_state, is_element)
        end = chunk_states + place * d_state + elements
        h = tl.exp2(delta * rates) * h + load_vector(end, is_element)
        tl.store(end, h, mask=is_element)


@triton.jit  # type: ignore[untyped-decorator]
def scan_outputs(
    u: tl.tensor,
    dt: tl.tensor,
    A_log: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    z: tl.tensor,
    dt_bias: tl.tensor,
    state: tl.tensor,
    chunk_states: tl.tensor,
    y: tl.tensor,
    state_out: tl.tensor,
    seq_len: int,
    d_inner: int,
    z_row: int,
    chunk_len: int,
    d_state: tl.constexpr,
    block_channels: tl.constexpr,
    block_states: tl.constexpr,
) -> None:
    """Scan every chunk from its start state. Grid: [channel blocks, chunks, batch].

    Args:
        u: [batch, seq_len, d_inner], T.
        dt: [batch, seq_len, d_inner], T.
        A_log: [d_inner, d_state], T.
        B: [batch, seq_len, d_state], T.
        C: [batch, seq_len, d_state], T.
        D: [d_inner], T.
        z: Rows of tokens at any distance. [batch, seq_len, d_inner], T.
        dt_bias: [d_inner], T.
        state: State before the first token. [batch, d_inner, d_state], float32.
        chunk_states: Start states of the chunks but the first; not read where there is one
            chunk. [batch, chunks - 1, d_inner, d_state], float32.
        y: Written. [batch, seq_len, d_inner], T.
        state_out: Written; must not be ``state``. [batch, d_inner, d_state], float32.
        seq_len: Tokens.
        d_inner: Channels.
        z_row: Elements from one token of ``z`` to the next.
        chunk_len: Tokens of a chunk; the last chunk may have fewer.
        d_state: States of a channel.
        block_channels: Channels of a program, a power of two.
        block_states: ``d_state`` rounded up to a power of two.
    """
    chunk, row, chunks = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    states = tl.arange(0, block_states)
    is_channel, is_state = channels < d_inner, states < d_state
    is_element = is_channel[:, None] & is_state[None, :]
    elements = channels[:, None] * d_state + states[None, :]
    rates = load_rates(A_log, elements, is_element)
    bias = load_vector(dt_bias + channels, is_channel)
    skip = load_vector(D + channels, is_channel)
    length = tl.minimum(chunk_len, seq_len - chunk * chunk_len)
    token = row * seq_len + chunk * chunk_len

    if chunk == 0:
        h = load_vector(state + row * d_inner * d_state + elements, is_element)
    else:
        place = (row * (chunks - 1) + chunk - 1) * d_inner
        h = load_vector(chunk_states + place * d_state + elements, is_element)
    u_next = load_vector(u + token * d_inner + channels, is_channel)
    dt_next = load_vector(dt + token * d_inner + channels, is_channel)
    z_next = load_vector(z + token * z_row + channels, is_channel)
    for step in range(length):
        delta = softplus(dt_next + bias)
        delta_u = delta * u_next
        out = skip * u_next
        gate = silu(z_next)
        here = token * d_inner + channels
        b_t = load_vector(B + token * d_state + states, is_state)
        c_t = load_vector(C + token * d_state + states, is_state)
        token += 1
        is_next = channels < tl.where(step + 1 < length, d_inner, 0)
        u_next = load_vector(u + token * d_inner + channels, is_next)
        dt_next = load_vector(dt + token * d_inner + channels, is_next)
        z_next = load_vector(z + token * z_row + channels, is_next)
        h = advance(h, rates, delta, delta_u, b_t)
        out += tl.sum(h * c_t[None, :], axis=1)
        tl.store(y + here, (out * gate).to(y.dtype.element_ty), mask=is_channel)
    if chunk == chunks - 1:
        tl.store(state_out + row * d_inner * d_state + elements, h, mask=is_element)
