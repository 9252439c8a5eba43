"""SparseMoE in plain PyTorch, to check the kernels: one expert after another.

Has the signature of `sparse_moe.sparse_moe`; the mathematics is in
`longllava_trt.plugins_trt.spec.SPARSE_MOE`. Slow and obvious, on any device; quantised weights are
converted to float first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["naive_sparse_moe"]


def naive_sparse_moe(
    x: Tensor,
    router_logits: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    top_k: int,
    gate_up_scales: Tensor | None = None,
    down_scales: Tensor | None = None,
) -> Tensor:
    """Compute `sparse_moe` by a loop over experts; same arguments, result, shapes and dtypes."""
    probabilities = router_logits.float().softmax(dim=-1)
    by_weight = probabilities.argsort(dim=-1, descending=True, stable=True)
    selected_experts = by_weight[:, :top_k]
    routing_weights = probabilities.gather(1, selected_experts).to(x.dtype)
    gate_up = _widen(gate_up, gate_up_scales).to(x.dtype)
    down = _widen(down, down_scales).to(x.dtype)
    y = x.new_zeros(x.shape)
    for expert in range(gate_up.shape[0]):
        tokens, ranks = (selected_experts == expert).nonzero(as_tuple=True)
        gate, up = (x[tokens] @ gate_up[expert].T).chunk(2, dim=-1)
        activated = (gate.float() * gate.float().sigmoid()).to(x.dtype)
        output = (activated * up) @ down[expert].T
        y[tokens] += output * routing_weights[tokens, ranks, None]
    return y


def _widen(weights: Tensor, scales: Tensor | None) -> Tensor:
    if scales is None:
        return weights
    if scales.ndim == 2:
        return weights.float() * scales[..., None]
    codes = weights.new_empty((*weights.shape, 2))
    codes[..., 0], codes[..., 1] = weights & 15, weights >> 4
    wide = codes.flatten(-2).float() - 8
    return wide * scales.repeat_interleave(128, dim=-1)[..., : wide.shape[-1]]
