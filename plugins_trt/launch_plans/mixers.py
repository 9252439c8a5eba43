"""Launch arithmetic of SelectiveScan and CausalConvWithState: kernels, grids, integers, workspaces.

Pure functions of shapes, without torch or Triton, so that the C++ host code can mirror them line by
line. The launches depend only on shapes, never on values.

Programs of one scan = batch * ceil(d_inner / 32) * chunks, a warp each. Time is cut into as many
chunks as give 8 warps to each of an A100's 108 multiprocessors, two to a scheduler, and no more:
with n chunks, (2n - 1) / n of the exponentials are computed, and those bound the scan. One sequence
of 4096 tokens, d_state 16, T of 2 bytes:

    d_inner   channel blocks   chunks   programs   a multiprocessor   workspace
       8192              256        4       1024                9.5    1632 KiB
       4096              128        7        896                8.3    1632 KiB
       2048               64       14        896                8.3    1768 KiB
        256                8       64        512                4.7    1071 KiB

From 64 tokens a chunk upwards neither chunks nor workspace depend on seq_len: 144,000 tokens at
8192 channels take 1632 KiB too. 128 channels a program and no chunks, as an older kernel had it,
are 64 programs.
"""

from __future__ import annotations

from longllava_trt.plugins_trt.launch_plans.plan import Launch, Workspace

__all__ = [
    "CONV_STEP_CHANNELS",
    "CONV_TILE",
    "MIN_CHUNK",
    "PREFIX_ELEMENTS",
    "PROGRAMS_WANTED",
    "SCAN_CHANNELS",
    "STEP_CHANNELS",
    "STEP_TOKENS",
    "plan_causal_conv",
    "plan_scan_chunks",
    "plan_selective_scan",
    "scan_blocks",
    "scan_chunks",
]

STEP_TOKENS = 2
"""Up to this many tokens take the decode kernels."""
PROGRAMS_WANTED = 8 * 108
"""Programs of one scan; time is cut into chunks to reach this number."""
SCAN_CHANNELS = 32
"""Channels of a program of the chunked scan: one a thread of a warp."""
STEP_CHANNELS = 8
"""Channels of a program of the scan's decode kernel."""
MIN_CHUNK = 64
"""Least number of tokens in a chunk, unless the sequence is shorter."""
PREFIX_ELEMENTS = 256
"""States of a program of the prefix kernel."""
CONV_TILE = {"channels_last": (64, 32), "channels_first": (8, 256)}
"""Channels and tokens of a program of the convolution, by layout."""
CONV_STEP_CHANNELS = 128
"""Channels of a program of the convolution's decode kernel."""


def scan_chunks(
    batch: int, seq_len: int, d_inner: int, *, chunks: int | None = None
) -> tuple[int, int]:
    """Return the number of chunks that time is cut into, and their length; the last may be shorter.

    Args:
        batch: Sequences.
        seq_len: Tokens of each, at least 1.
        d_inner: Channels.
        chunks: Upper limit; by default as many as fill the GPU.
    """
    if chunks is None:
        programs = batch * _ceil_div(d_inner, SCAN_CHANNELS)
        chunks = min(_ceil_div(PROGRAMS_WANTED, programs), max(seq_len // MIN_CHUNK, 1))
    length = _ceil_div(seq_len, chunks)
    return _ceil_div(seq_len, length), length


def plan_selective_scan(
    batch: int,
    seq_len: int,
    d_inner: int,
    d_state: int,
    *,
    z_row: int | None = None,
    chunks: int | None = None,
) -> tuple[list[Launch], list[Workspace]]:
    """Return the kernels of one SelectiveScan in stream order, and the buffers between them.

    Args:
        batch: Sequences.
        seq_len: Tokens of each, at least 1.
        d_inner: Channels.
        d_state: States of a channel.
        z_row: Elements from one token of the gate to the next; ``d_inner`` if omitted.
        chunks: As for `scan_chunks`.
    """
    z_row = d_inner if z_row is None else z_row
    if seq_len > STEP_TOKENS:
        return plan_scan_chunks(batch, seq_len, d_inner, d_state, z_row=z_row, chunks=chunks)
    sizes = {"seq_len": seq_len, "d_inner": d_inner, "z_row": z_row}
    grid = (_ceil_div(d_inner, STEP_CHANNELS), batch, 1)
    return [Launch("scan_step", grid, sizes, scan_blocks(d_state, STEP_CHANNELS), 1)], []


def plan_scan_chunks(
    batch: int,
    seq_len: int,
    d_inner: int,
    d_state: int,
    *,
    z_row: int,
    chunks: int | None = None,
) -> tuple[list[Launch], list[Workspace]]:
    """Return the kernels of a scan over many tokens; arguments as for `plan_selective_scan`.

    One chunk needs no summaries, no prefix and no workspace.
    """
    count, length = scan_chunks(batch, seq_len, d_inner, chunks=chunks)
    sizes = {"seq_len": seq_len, "d_inner": d_inner}
    blocks = scan_blocks(d_state, SCAN_CHANNELS)
    columns = _ceil_div(d_inner, SCAN_CHANNELS)
    read = sizes | {"z_row": z_row, "chunk_len": length}
    outputs = Launch("scan_outputs", (columns, count, batch), read, blocks, 1)
    slots = count - 1
    if slots == 0:
        return [outputs], []
    spaces = [
        Workspace("chunk_states", (batch, slots, d_inner, d_state)),
        Workspace("chunk_deltas", (batch, slots, d_inner)),
    ]
    prefix_grid = (_ceil_div(d_inner * d_state, PREFIX_ELEMENTS), batch, 1)
    prefix_blocks = {"d_state": d_state, "block_elements": PREFIX_ELEMENTS}
    prefix = {"d_inner": d_inner, "slots": slots}
    return [
        Launch("scan_summaries", (columns, slots, batch), sizes | {"chunk_len": length}, blocks, 1),
        Launch("scan_prefix", prefix_grid, prefix, prefix_blocks, 4),
        outputs,
    ], spaces


def plan_causal_conv(
    batch: int,
    seq_len: int,
    d_inner: int,
    d_conv: int,
    *,
    strides: tuple[int, int, int, int] | None = None,
    channels_last: bool = False,
) -> Launch:
    """Return the kernel of one CausalConvWithState; it needs no workspace.

    Args:
        batch: Sequences.
        seq_len: Tokens of each, at least 1.
        d_inner: Channels.
        d_conv: Taps, at least 2.
        strides: Elements from one sequence to the next and from one row to the next, of the input
            and then of the output. A row is a channel or, with ``channels_last``, a token; its
            elements are adjacent. Contiguous tensors if omitted.
        channels_last: Both tensors are [batch, seq_len, d_inner], so that no transpose is needed.
    """
    if strides is None:
        strides = (seq_len * d_inner, d_inner if channels_last else seq_len) * 2
    names = ("input_batch", "input_row", "output_batch", "output_row")
    sizes = {"seq_len": seq_len, "d_inner": d_inner} | dict(zip(names, strides, strict=True))
    blocks = {"d_conv": d_conv, "channels_last": int(channels_last)}
    if seq_len <= STEP_TOKENS:
        blocks |= {"block_channels": CONV_STEP_CHANNELS}
        return Launch(
            "conv_step", (_ceil_div(d_inner, CONV_STEP_CHANNELS), batch, 1), sizes, blocks, 4
        )
    channels, tokens = CONV_TILE["channels_last" if channels_last else "channels_first"]
    grid = (_ceil_div(d_inner, channels), _ceil_div(seq_len, tokens), batch)
    blocks |= {"block_channels": channels, "block_tokens": tokens}
    return Launch("conv_chunk", grid, sizes, blocks, 4)


def scan_blocks(d_state: int, channels: int) -> dict[str, int]:
    """Return the compile-time constants of a scan's kernel."""
    states = _power_of_two(d_state)
    return {"d_state": d_state, "block_channels": channels, "block_states": states}


def _ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
