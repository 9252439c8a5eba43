"""The least work an operator must do, and the time it takes at the rates that the GPU reached.

Every byte is counted once: inputs read, outputs written. What a kernel moves or computes beyond
that counts against it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Ceilings", "Work", "attention_work", "conv_work", "mamba_work", "moe_work", "scan_work"]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that were measured on this GPU."""

    bytes_per_s: float
    """Of a large copy, bytes read and bytes written together."""
    flops_per_s: float
    """Of a large bfloat16 matrix product."""
    exps_per_s: float
    """Exponentials of registers."""


@dataclass(frozen=True, slots=True)
class Work:
    """The least that a call must do."""

    bytes_: float
    flops: float = 0.0
    """Of matrix products alone."""
    exps: float = 0.0

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """Return the least time in ms, and what sets it."""
        times = {
            "bytes": self.bytes_ / ceilings.bytes_per_s,
            "flops": self.flops / ceilings.flops_per_s,
            "exponentials": self.exps / ceilings.exps_per_s,
        }
        bound = max(times, key=lambda name: times[name])
        return 1e3 * times[bound], bound


def scan_work(seq_len: int, d_inner: int, d_state: int, *, itemsize: int) -> Work:
    """Return the work of one sequence's SelectiveScan."""
    rows = 4 * d_inner + 2 * d_state  # u, dt, z and y; B and C
    weights = d_inner * (d_state + 2)
    states = 2 * d_inner * d_state * 4
    # a decay for each state; softplus and SiLU one each
    exps = seq_len * d_inner * (d_state + 2)
    return Work(itemsize * (seq_len * rows + weights) + states, exps=exps)


def mamba_work(seq_len: int, d_inner: int, d_state: int, dt_rank: int, *, itemsize: int) -> Work:
    """Return the work of one sequence's MambaScan."""
    rows = 3 * d_inner + dt_rank + 2 * d_state  # u, gate and y; dt, B and C before their norms
    weights = d_inner * (d_state + dt_rank + 2) + dt_rank + 2 * d_state
    states = 2 * d_inner * d_state * 4
    return Work(
        itemsize * (seq_len * rows + weights) + states,
        flops=2 * seq_len * d_inner * dt_rank,
        exps=seq_len * d_inner * (d_state + 2),
    )


def conv_work(seq_len: int, d_inner: int, d_conv: int, *, itemsize: int) -> Work:
    """Return the work of one sequence's CausalConvWithState."""
    weights = d_inner * (d_conv + 1)
    states = 2 * d_inner * (d_conv - 1)
    return Work(itemsize * (2 * seq_len * d_inner + weights + states), exps=seq_len * d_inner)


def attention_work(
    batch: int,
    seq_len: int,
    past: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    itemsize: int,
) -> Work:
    """Return the work of one CachedAttention behind caches of equal length.

    New keys and values count twice, read and written; scores above the diagonal count nothing.
    """
    cached = 2 * (past + 2 * seq_len) * kv_heads * head_dim
    scores = seq_len * past + seq_len * (seq_len + 1) // 2
    bytes_ = batch * itemsize * (cached + 2 * seq_len * heads * head_dim)
    return Work(bytes_, flops=4 * batch * scores * heads * head_dim, exps=batch * scores * heads)


def moe_work(
    num_tokens: int,
    hidden: int,
    intermediate: int,
    *,
    num_experts: int,
    top_k: int,
    touched: int,
    weight_bits: int,
    itemsize: int,
) -> Work:
    """Return the work of one SparseMoE.

    Args:
        num_tokens: Rows.
        hidden: Columns.
        intermediate: Columns inside an expert.
        num_experts: Experts to choose from.
        top_k: Experts of one token.
        touched: Experts that at least one token goes to.
        weight_bits: Of one weight.
        itemsize: Bytes of one activation.
    """
    weights = 3 * hidden * intermediate
    scales = {16: 0, 32: 0, 8: 2 * intermediate + hidden, 4: weights // 128}[weight_bits]
    bytes_ = touched * (weights * weight_bits / 8 + 4 * scales)
    bytes_ += itemsize * num_tokens * (2 * hidden + num_experts)
    return Work(bytes_, flops=2 * num_tokens * top_k * weights)
