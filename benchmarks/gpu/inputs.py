"""Fresh random inputs of every operator, sized like a trained model's, on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "FORMATS",
    "attention_inputs",
    "conv_inputs",
    "mamba_inputs",
    "moe_inputs",
    "nbytes",
    "scan_inputs",
]

FORMATS = {"bf16": 16, "int8": 8, "int4": 4}
"""Bits of a weight by the experts' format."""


def nbytes(tensors: dict[str, Any]) -> int:
    """Return the bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def scan_inputs(
    seq_len: int, d_inner: int, d_state: int, *, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Return the inputs of one sequence's SelectiveScan, in the operator's order."""
    import torch

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    rates = torch.rand(d_inner, d_state, device=device) * 15 + 1
    return {
        "u": normal(1, seq_len, d_inner),
        "dt": normal(1, seq_len, d_inner),
        "A_log": rates.log().to(dtype),
        "B": normal(1, seq_len, d_state),
        "C": normal(1, seq_len, d_state),
        "D": normal(d_inner),
        "z": normal(1, seq_len, d_inner),
        "dt_bias": normal(d_inner) - 4,
        "state": torch.randn(1, d_inner, d_state, device=device),
    }


def mamba_inputs(
    seq_len: int, d_inner: int, d_state: int, dt_rank: int, *, dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Return the inputs of one sequence's MambaScan, in the operator's order."""
    import torch

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    scan = scan_inputs(1, d_inner, d_state, dtype=dtype, device=device)
    return {
        "u": normal(1, seq_len, d_inner),
        "projected": normal(1, seq_len, dt_rank + 2 * d_state),
        "dt_norm_weight": normal(dt_rank),
        "b_norm_weight": normal(d_state),
        "c_norm_weight": normal(d_state),
        "dt_proj_weight": normal(d_inner, dt_rank) / dt_rank**0.5,
        **{name: scan[name] for name in ("dt_bias", "A_log", "D")},
        "xz": normal(1, seq_len, 2 * d_inner),
        "state": scan["state"],
    }


def conv_inputs(
    seq_len: int, d_inner: int, d_conv: int, *, dtype: torch.dtype, device: str, channels_last: bool
) -> dict[str, Any]:
    """Return the inputs of one sequence's convolution, token by token or channel by channel."""
    import torch

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    shape = (1, seq_len, d_inner) if channels_last else (1, d_inner, seq_len)
    rows = normal(*shape)
    return {
        "input": rows.transpose(1, 2) if channels_last else rows,
        "weight": normal(d_inner, 1, d_conv) / d_conv,
        "bias": normal(d_inner),
        "past_state": normal(1, d_inner, d_conv - 1),
    }


def attention_inputs(
    batch: int,
    seq_len: int,
    past: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: str,
) -> dict[str, Any]:
    """Return the inputs of one CachedAttention: views of one product, and caches with room for what is new."""
    import torch

    widths = [n * head_dim for n in (heads, kv_heads, kv_heads)]
    fused = torch.randn(batch, seq_len, sum(widths), device=device).to(dtype)
    views = [x.unflatten(-1, (-1, head_dim)) for x in fused.split(widths, dim=-1)]
    shape = (batch, kv_heads, past + seq_len, head_dim)
    caches = [torch.randn(shape, device=device, dtype=dtype) for _ in range(2)]
    lengths = torch.full((batch,), past, dtype=torch.int32, device=device)
    names = ("q", "k", "v", "key_cache", "value_cache", "past_len")
    return dict(zip(names, (*views, *caches, lengths), strict=True))


def moe_inputs(
    num_tokens: int,
    hidden: int,
    intermediate: int,
    *,
    num_experts: int,
    weights: str,
    dtype: torch.dtype,
    device: str,
) -> dict[str, Any]:
    """Return the inputs of one SparseMoE; quantised experts are random codes, so none has to be quantised."""
    import torch

    activations: dict[str, Any] = {
        "x": torch.randn(num_tokens, hidden, device=device).to(dtype),
        "router_logits": torch.randn(num_tokens, num_experts, device=device).to(dtype),
    }
    matrices = {"gate_up": (2 * intermediate, hidden), "down": (hidden, intermediate)}
    for name, (rows, columns) in matrices.items():
        shape, bits = (num_experts, rows, columns), FORMATS.get(weights, 16)
        if bits == 16:
            # one expert after another: float32 of all of them would not fit beside the rest
            held = torch.empty(shape, device=device, dtype=dtype)
            for expert in held:
                expert.copy_(torch.randn(rows, columns, device=device) * columns**-0.5)
            activations[name] = held
            continue
        low, high, step = (-127, 128, 73.0) if bits == 8 else (1, 16, 4.3)
        kind = torch.int8 if bits == 8 else torch.uint8
        codes = torch.randint(low, high, shape, device=device, dtype=kind)
        groups = () if bits == 8 else (-(-columns // 128),)
        spread = torch.rand(num_experts, rows, *groups, device=device) + 0.5
        # of uniform codes, whose standard deviation is `step`
        activations[f"{name}_scales"] = spread * columns**-0.5 / step
        activations[name] = codes if bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)
    order = ("x", "router_logits", "gate_up", "down", "gate_up_scales", "down_scales")
    return {name: activations[name] for name in order if name in activations}
