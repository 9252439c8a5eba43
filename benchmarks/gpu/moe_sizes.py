"""The sizes at which SparseMoE is measured, and the work that they are."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import FORMATS, moe_inputs
from benchmarks.gpu.roofline import Work, moe_work

__all__ = ["TOKENS", "TOP_K", "make_moe", "work_of"]

TOKENS = (4096, 1, 64)
TOP_K = 2


def make_moe(context: BenchContext, num_tokens: int, weights: str) -> dict[str, Any]:
    """Return inputs of the 53B's size, or tiny ones."""
    import torch

    experts, hidden, intermediate = (4, 32, 64) if context.is_dry else (16, 4096, 14336)
    return moe_inputs(
        num_tokens,
        hidden,
        intermediate,
        num_experts=experts,
        weights=weights,
        dtype=torch.float32 if context.is_dry else torch.bfloat16,
        device=context.device,
    )


def work_of(tensors: dict[str, Any], weights: str) -> Work:
    """Return the work of a call; which experts are touched is up to these logits."""
    num_tokens, hidden = tensors["x"].shape
    touched = tensors["router_logits"].topk(TOP_K, dim=-1).indices.unique().numel()
    itemsize = tensors["x"].element_size()
    return moe_work(
        num_tokens,
        hidden,
        tensors["gate_up"].shape[1] // 2,
        num_experts=tensors["router_logits"].shape[1],
        top_k=TOP_K,
        touched=touched,
        weight_bits=8 * itemsize if weights == "bf16" else FORMATS[weights],
        itemsize=itemsize,
    )
