"""CausalConvWithState on a GPU: one kernel for a chunk of time, one for a decode step.

output[t] = silu(bias + sum over k of weight[k] extended[t + k]) and present_state = the last
d_conv - 1 columns of extended, where extended is past_state followed by input. Sums, bias and SiLU
are float32; the output is cast to T at the end.

Rows of the input and the output may have any stride. A row is a channel, as in the ONNX node, or a
token, as in the projections around it, where it may be one half of a wider row. So a plugin can
replace the transposes and the split around the node too. The plain version is in `naive.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.elementwise import load_vector, silu
from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv

if TYPE_CHECKING:
    import torch

__all__ = ["causal_conv", "conv_chunk", "conv_step"]


@triton.jit  # type: ignore[untyped-decorator]
def place_of(
    channels: tl.tensor, tokens: tl.tensor, row: tl.tensor, channels_last: tl.constexpr
) -> tl.tensor:
    """Return offsets within one sequence."""
    if channels_last:
        return tokens.to(tl.int64) * row + channels
    else:  # noqa: RET505 - Triton compiles the branch that is taken, and would go on below it
        return channels.to(tl.int64) * row + tokens


@triton.jit  # type: ignore[untyped-decorator]
def load_extended(
    input: tl.tensor,  # noqa: A002 - the operator's own name
    past_state: tl.tensor,
    channels: tl.tensor,
    columns: tl.tensor,
    seq_len: int,
    d_inner: int,
    input_row: int,
    d_conv: tl.constexpr,
    channels_last: tl.constexpr,
) -> tl.tensor:
    """Load columns of past_state followed by input, as float32; zeros beyond either end."""
    is_channel = channels < d_inner
    tokens = columns - (d_conv - 1)
    past = load_vector(
        past_state + channels * (d_conv - 1) + columns, is_channel & (columns < d_conv - 1)
    )
    here = place_of(channels, tokens, input_row, channels_last)
    return past + load_vector(input + here, is_channel & (tokens >= 0) & (tokens < seq_len))


@triton.jit  # type: ignore[untyped-decorator]
def conv_chunk(
    input: tl.tensor,  # noqa: A002 - the operator's own name
    weight: tl.tensor,
    bias: tl.tensor,
    past_state: tl.tensor,
    output: tl.tensor,
    present_state: tl.tensor,
    seq_len: int,
    d_inner: int,
    input_batch: int,
    input_row: int,
    output_batch: int,
    output_row: int,
    d_conv: tl.constexpr,
    channels_last: tl.constexpr,
    block_channels: tl.constexpr,
    block_tokens: tl.constexpr,
) -> None:
    """Convolve a tile of channels and tokens. Grid: [channel blocks, token blocks, batch].

    Args:
        input: [batch, d_inner, seq_len], or with ``channels_last`` [batch, seq_len, d_inner]; T.
        weight: [d_inner, 1, d_conv], T.
        bias: [d_inner], T.
        past_state: [batch, d_inner, d_conv - 1], T.
        output: Written; laid out like ``input``, with its own strides. T.
        present_state: Written; must not be ``past_state``. [batch, d_inner, d_conv - 1], T.
        seq_len: Tokens.
        d_inner: Channels.
        input_batch: Elements from one sequence to the next.
        input_row: Elements from one channel to the next; with ``channels_last``, from one token.
        output_batch: As ``input_batch``.
        output_row: As ``input_row``.
        d_conv: Taps.
        channels_last: 1 where the elements of a row are channels, 0 where they are tokens.
        block_channels: Channels of a program, a power of two.
        block_tokens: Tokens of a program, a power of two.
    """
    batch = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    tokens = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
    input += batch * input_batch  # noqa: A001
    past_state += batch * d_inner * (d_conv - 1)
    is_channel, at = channels < d_inner, channels[:, None]
    total = tl.zeros([block_channels, block_tokens], tl.float32)
    total += load_vector(bias + channels, is_channel)[:, None]
    for tap in tl.static_range(d_conv):
        columns = (tokens + tap)[None, :]
        x = load_extended(
            input, past_state, at, columns, seq_len, d_inner, input_row, d_conv, channels_last
        )
        total += load_vector(weight + channels * d_conv + tap, is_channel)[:, None] * x
    here = batch * output_batch + place_of(at, tokens[None, :], output_row, channels_last)
    mask = is_channel[:, None] & (tokens < seq_len)[None, :]
    tl.store(output + here, silu(total).to(output.dtype.element_ty), mask=mask)
    if tl.program_id(1) == 0:
        present_state += batch * d_inner * (d_conv - 1)
        for column in tl.static_range(d_conv - 1):
            last = load_extended(
                input,
                past_state,
                channels,
                tl.zeros([block_channels], tl.int32) + seq_len + column,
                seq_len,
                d_inner,
                input_row,
                d_conv,
                channels_last,
            )
            kept = present_state + channels * (d_conv - 1) + column
            tl.store(kept, last.to(present_state.dtype.element_ty), mask=is_channel)


@triton.jit  # type: ignore[untyped-decorator]
def conv_step(
    input: tl.tensor,  # noqa: A002 - the operator's own name
    weight: tl.tensor,
    bias: tl.tensor,
    past_state: tl.tensor,
    output: tl.tensor,
    present_state: tl.tensor,
    seq_len: int,
    d_inner: int,
    input_batch: int,
    input_row: int,
    output_batch: int,
    output_row: int,
    d_conv: tl.constexpr,
    channels_last: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """Convolve a token or two, a channel a thread. Grid: [channel blocks, batch].

    Right for any ``seq_len``, quick for small ones. Arguments as for `conv_chunk`.
    """
    batch = tl.program_id(1).to(tl.int64)
    channels = tl.program_id(0) * block_channels + tl.arange(0, block_channels)
    input += batch * input_batch  # noqa: A001
    output += batch * output_batch
    past_state += batch * d_inner * (d_conv - 1)
    present_state += batch * d_inner * (d_conv - 1)
    is_channel, first = channels < d_inner, tl.zeros([block_channels], tl.int32)
    offset = load_vector(bias + channels, is_channel)
    for token in range(seq_len):
        total = offset
        for tap in tl.static_range(d_conv):
            columns = first + (token + tap)
            x = load_extended(
                input,
                past_state,
                channels,
                columns,
                seq_len,
                d_inner,
                input_row,
                d_conv,
                channels_last,
            )
            total += load_vector(weight + channels * d_conv + tap, is_channel) * x
        here = place_of(channels, first + token, output_row, channels_last)
        tl.store(output + here, silu(total).to(output.dtype.element_ty), mask=is_channel)
    for column in tl.static_range(d_conv - 1):
        columns = first + (seq_len + column)
        x = load_extended(
            input, past_state, channels, columns, seq_len, d_inner, input_row, d_conv, channels_last
        )
        kept = present_state + channels * (d_conv - 1) + column
        tl.store(kept, x.to(present_state.dtype.element_ty), mask=is_channel)


def causal_conv(
    input: torch.Tensor,  # noqa: A002 - the operator's own name
    weight: torch.Tensor,
    bias: torch.Tensor,
    past_state: torch.Tensor,
    *,
    present_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the operator on tensors of one device, as C++ does.

    Args:
        input: [batch, d_inner, seq_len], T; contiguous, or a view whose channels are adjacent,
            such as the transpose of one half of [batch, seq_len, 2 * d_inner].
        weight: Contiguous. [d_inner, 1, d_conv], T.
        bias: Contiguous. [d_inner], T.
        past_state: Contiguous; never written. [batch, d_inner, d_conv - 1], T.
        present_state: Memory for the result; allocated if omitted; not ``past_state``.

    Returns:
        output: Its memory is laid out as the input's, without gaps. [batch, d_inner, seq_len], T.
        present_state: [batch, d_inner, d_conv - 1], T.
    """
    batch, d_inner, seq_len = input.shape
    channels_last = input.stride(2) != 1
    if channels_last:
        output = input.new_empty((batch, seq_len, d_inner)).transpose(1, 2)
    else:
        output = input.new_empty(input.shape)
    if present_state is None:
        present_state = past_state.new_empty(past_state.shape)
    row_axis = 2 if channels_last else 1
    launch = plan_causal_conv(
        batch,
        seq_len,
        d_inner,
        weight.shape[2],
        strides=(
            input.stride(0),
            input.stride(row_axis),
            output.stride(0),
            output.stride(row_axis),
        ),
        channels_last=channels_last,
    )
    kernel = conv_chunk if launch.kernel == "conv_chunk" else conv_step
    kernel[launch.grid](
        input,
        weight,
        bias,
        past_state,
        output,
        present_state,
        **launch.integers,
        **launch.blocks,
        num_warps=launch.num_warps,
    )
    return output, present_state
