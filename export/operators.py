"""The reference's operators as ONNX nodes.

Each call emits one node of the graph; nothing here computes. Shapes and dtypes are those of
`longllava_trt.reference.operators`, T the graph's dtype. Nodes of domain
`longllava` take name and version from `longllava_trt.plugins_trt.spec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longllava_trt.models.rotary import inverse_frequencies
from longllava_trt.models.spec import RotarySpec
from longllava_trt.plugins_trt.spec import CAUSAL_CONV, SELECTIVE_SCAN, SPARSE_MOE, OperatorSpec
from longllava_trt.reference.cache import AttentionState
from longllava_trt.reference.operators import ExpertWeights, ScanInputs

__all__ = ["OnnxOperators"]


class OnnxOperators:
    """Operators that leave ONNX nodes in a traced graph.

    Args:
        past_len: Tokens already in the KV cache. [batch], int64. Not needed without causal
            attention.
    """

    def __init__(self, past_len: Tensor | None = None) -> None:
        self._past_len = past_len
        self._tables: dict[RotarySpec, tuple[Tensor, Tensor]] = {}

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`RMSNormalization`: mean square in float32, scale in the input's dtype (spec 2.1)."""
        attributes = {"epsilon": eps, "stash_type": 1}
        return _standard("RMSNormalization", [x, weight], like=x, version=23, **attributes)

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`Attention` without a mask."""
        return _standard("Attention", [q, k, v], like=q, version=24, softmax_precision=1)

    def rotate(
        self, q: Tensor, k: Tensor, state: AttentionState, rotary: RotarySpec
    ) -> tuple[Tensor, Tensor]:
        """`RotaryEmbedding` of q and k; the cosines and sines are computed once for all layers."""
        del state  # its length is the capacity, not the number of positions
        if rotary not in self._tables:
            self._tables[rotary] = self._rotary_tables(q, rotary)
        cosine, sine = self._tables[rotary]
        rotated_q, rotated_k = (
            _standard("RotaryEmbedding", [x, cosine, sine], like=x, version=23) for x in (q, k)
        )
        return rotated_q, rotated_k

    def _rotary_tables(self, q: Tensor, rotary: RotarySpec) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [batch, L, head_dim / 2], T, of the angles, which are float32.

        Args:
            q: Queries. [batch, H, L, head_dim], T.
            rotary: Base and scaling.
        """
        assert self._past_len is not None, "Bug: the decoder stage gives past_len"
        positions = self._past_len[:, None] + torch.arange(q.shape[2])
        values = inverse_frequencies(rotary, q.shape[-1]).tolist()
        frequencies = torch.onnx.ops.symbolic(
            "Constant", [], {"value_floats": values}, dtype=torch.float32, shape=[len(values)]
        )
        angles = positions.float()[..., None] * frequencies
        return angles.cos().to(q.dtype), angles.sin().to(q.dtype)

    def causal_attention(
        self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState
    ) -> tuple[Tensor, AttentionState]:
        """`TensorScatter` into the cache at past_len, then `Attention` over the valid positions.

        The cache has room for `capacity` positions; the causal mask is aligned to the last valid
        one.
        """
        assert self._past_len is not None, "Bug: the decoder stage gives past_len"
        key, value = (
            _standard("TensorScatter", [cache, new, self._past_len], like=cache, version=24, axis=2)
            for cache, new in ((state.key, k), (state.value, v))
        )
        total_len = self._past_len + q.shape[2]
        inputs = [q, key, value, None, None, None, total_len]
        y = _standard("Attention", inputs, like=q, version=24, is_causal=1, softmax_precision=1)
        return y, AttentionState(key, value)

    def causal_conv(
        self, u: Tensor, weight: Tensor, bias: Tensor, conv_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`CausalConvWithState` with SiLU."""
        return _ours(
            CAUSAL_CONV, [u, weight, bias, conv_state], like=(u, conv_state), activation="silu"
        )

    def selective_scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """`longllava::SelectiveScan`."""
        return _ours(SELECTIVE_SCAN, list(inputs), like=(inputs.u, inputs.state))

    def sparse_moe(
        self, x: Tensor, router_logits: Tensor, experts: Sequence[ExpertWeights], *, top_k: int
    ) -> Tensor:
        """`longllava::SparseMoE`; nodes that stack experts stay in the graph, folded at load."""
        gate_up = torch.stack([torch.cat([e.gate, e.up]) for e in experts])
        down = torch.stack([e.down for e in experts])
        (y,) = _ours(SPARSE_MOE, [x, router_logits, gate_up, down], like=(x,), top_k=top_k)
        return y


def _standard(
    op_type: str, inputs: list[Tensor | None], *, like: Tensor, version: int, **attributes: Any
) -> Tensor:
    """Emit a node of ONNX's own domain; its one output has the shape and dtype of ``like``."""
    y: Tensor = torch.onnx.ops.symbolic(
        op_type, inputs, attributes, dtype=like.dtype, shape=like.shape, version=version
    )
    return y


def _ours(
    spec: OperatorSpec, inputs: list[Tensor], *, like: tuple[Tensor, ...], **attributes: Any
) -> Any:
    """Emit a node of a spec; output k has the shape and dtype of ``like[k]``."""
    name = f"{spec.domain}::{spec.op_type}" if spec.domain else spec.op_type
    return torch.onnx.ops.symbolic_multi_out(
        name,
        inputs,
        attributes,
        dtypes=[t.dtype for t in like],
        shapes=[t.shape for t in like],
        version=spec.version,
    )
