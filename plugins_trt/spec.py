"""The custom operators: names, shapes, dtypes and attributes, once.

The torch op, the ONNX node, the function body, the Numba kernel, the Triton kernel and the TensorRT
plugin read this. The mathematics is written at each constant; arithmetic is float32 unless it says
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CACHED_ATTENTION",
    "CAUSAL_CONV",
    "MAMBA_SCAN",
    "OPERATORS",
    "SELECTIVE_SCAN",
    "SPARSE_MOE",
    "OperatorAttribute",
    "OperatorSpec",
    "OperatorValue",
]


@dataclass(frozen=True, slots=True)
class OperatorValue:
    """One input or output of an operator."""

    name: str
    axes: tuple[str | int, ...]
    """Dim names, equal within one call; a number is a fixed size; `2*x` is twice `x`."""
    dtype: Literal["T", "float32", "int32"] = "T"
    """`T` is the model's dtype: float32, float16 or bfloat16, the same throughout one node."""


@dataclass(frozen=True, slots=True)
class OperatorAttribute:
    """One attribute of an operator."""

    name: str
    type: Literal["int", "float", "string"]
    meaning: str
    value: int | float | str | None = None
    """The only value this project uses, or None where the model decides."""
    default: str | None = None
    """Value for a node without the attribute, or None where every node has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpec:
    """One operator, as a node of an ONNX graph."""

    domain: str
    op_type: str
    version: int
    """Version of the domain's opset; raised whenever numbers or layouts change."""
    inputs: tuple[OperatorValue, ...]
    outputs: tuple[OperatorValue, ...]
    attributes: tuple[OperatorAttribute, ...] = ()
    optional_inputs: tuple[OperatorValue, ...] = ()
    """After `inputs`; a node has all of them or none."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in node order."""
        return tuple(value.name for value in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in node order."""
        return tuple(value.name for value in self.outputs)


_DOMAIN = "longllava"

SELECTIVE_SCAN = OperatorSpec(
    domain=_DOMAIN,
    op_type="SelectiveScan",
    version=1,
    inputs=(
        OperatorValue("u", ("batch", "seq_len", "d_inner")),
        OperatorValue("dt", ("batch", "seq_len", "d_inner")),
        OperatorValue("A_log", ("d_inner", "d_state")),
        OperatorValue("B", ("batch", "seq_len", "d_state")),
        OperatorValue("C", ("batch", "seq_len", "d_state")),
        OperatorValue("D", ("d_inner",)),
        OperatorValue("z", ("batch", "seq_len", "d_inner")),
        OperatorValue("dt_bias", ("d_inner",)),
        OperatorValue("state", ("batch", "d_inner", "d_state"), "float32"),
    ),
    outputs=(
        OperatorValue("y", ("batch", "seq_len", "d_inner")),
        OperatorValue("state_out", ("batch", "d_inner", "d_state"), "float32"),
    ),
)
"""Mamba's recurrence from a carried state, with skip and gate.

delta = softplus(dt + dt_bias); A = -exp(A_log); h = exp(delta A) h + (delta u) B; y = (sum over
d_state of h C + D u) silu(z). All of it in float32; y is cast to T at the very end; `state_out` is
h after the last token.
"""

SPARSE_MOE = OperatorSpec(
    domain=_DOMAIN,
    op_type="SparseMoE",
    version=1,
    inputs=(
        OperatorValue("x", ("num_tokens", "hidden")),
        OperatorValue("router_logits", ("num_tokens", "num_experts")),
        OperatorValue("gate_up", ("num_experts", "2*intermediate", "hidden")),
        OperatorValue("down", ("num_experts", "hidden", "intermediate")),
    ),
    outputs=(OperatorValue("y", ("num_tokens", "hidden")),),
    attributes=(
        OperatorAttribute("top_k", "int", "Experts that each token visits."),
        OperatorAttribute(
            "weight_format", "string", "Of gate_up and down: none, int8 or int4.", default="none"
        ),
    ),
    optional_inputs=(
        OperatorValue("gate_up_scales", ("num_experts", "2*intermediate"), "float32"),
        OperatorValue("down_scales", ("num_experts", "hidden"), "float32"),
    ),
)
"""Mixture of SwiGLU experts.

routing_weights = the `top_k` largest of softmax(router_logits), the softmax in float32 over all
experts and not renormalised, then cast to T; y = the weighted experts' outputs, product and running
sum in T, in ascending order of expert. An expert is down(silu(gate x) * up x); its `gate_up` rows
are gate's first, then up's.

Quantised experts come with scales; `kernels/sparse_moe_formats.py` has the arithmetic. Where
`weight_format` is int8, `gate_up` and `down` are int8 with a scale a row. Where it is int4, they are
uint8, half as wide, with two codes a byte, and scales have a third axis: a scale a group of columns.
"""

CAUSAL_CONV = OperatorSpec(
    domain="",
    op_type="CausalConvWithState",
    version=27,
    inputs=(
        OperatorValue("input", ("batch", "d_inner", "seq_len")),
        OperatorValue("weight", ("d_inner", 1, "d_conv")),
        OperatorValue("bias", ("d_inner",)),
        OperatorValue("past_state", ("batch", "d_inner", "d_conv-1")),
    ),
    outputs=(
        OperatorValue("output", ("batch", "d_inner", "seq_len")),
        OperatorValue("present_state", ("batch", "d_inner", "d_conv-1")),
    ),
    attributes=(OperatorAttribute("activation", "string", "Applied to the biased sum.", "silu"),),
)
"""Depthwise causal convolution with carried columns: standard ONNX, ours for TensorRT only."""

CACHED_ATTENTION = OperatorSpec(
    domain=_DOMAIN,
    op_type="CachedAttention",
    version=1,
    inputs=(
        OperatorValue("q", ("batch", "seq_len", "heads", "head_dim")),
        OperatorValue("key_cache", ("batch", "kv_heads", "capacity", "head_dim")),
        OperatorValue("value_cache", ("batch", "kv_heads", "capacity", "head_dim")),
        OperatorValue("past_len", ("batch",), "int32"),
    ),
    outputs=(OperatorValue("y", ("batch", "seq_len", "heads", "head_dim")),),
)
"""Attention over caches that hold the new keys and values already; of engines' graphs alone.

Query t of a sequence sees positions 0 to past_len + t; what lies beyond is never read. Head h meets
key/value head h / (heads / kv_heads); scores are scaled by head_dim ** -0.5. Scores, softmax and
sums are float32; softmax's powers are cast to T before they meet the values, and y at the very end.

No bundle has this node: there standard ONNX says it, with TensorScatter and Attention. A build of
engines puts it in the place of Attention, whose kernels in TensorRT copy the caches in every call.
"""

MAMBA_SCAN = OperatorSpec(
    domain=_DOMAIN,
    op_type="MambaScan",
    version=1,
    inputs=(
        OperatorValue("u", ("batch", "seq_len", "d_inner")),
        OperatorValue("projected", ("batch", "seq_len", "dt_b_c")),
        OperatorValue("dt_norm_weight", ("dt_rank",)),
        OperatorValue("b_norm_weight", ("d_state",)),
        OperatorValue("c_norm_weight", ("d_state",)),
        OperatorValue("dt_proj_weight", ("d_inner", "dt_rank")),
        OperatorValue("dt_bias", ("d_inner",)),
        OperatorValue("A_log", ("d_inner", "d_state")),
        OperatorValue("D", ("d_inner",)),
        OperatorValue("xz", ("batch", "seq_len", "2*d_inner")),
        OperatorValue("state", ("batch", "d_inner", "d_state"), "float32"),
    ),
    outputs=(
        OperatorValue("y", ("batch", "seq_len", "d_inner")),
        OperatorValue("state_out", ("batch", "d_inner", "d_state"), "float32"),
    ),
    attributes=(OperatorAttribute("eps", "float", "Added to the mean square of each norm."),),
)
"""Mamba's mixer between x_proj and out_proj; of engines' graphs alone.

`projected` is x_proj's result: dt, B and C in dt_b_c = dt_rank + 2 d_state columns. Each part is
normalised by itself: x / sqrt(mean of x^2 + eps) in float32, cast to T, times its weight in T. dt is
multiplied by dt_proj_weight', summed in float32 and cast to T. Then SelectiveScan, with B, C and that
dt; its gate is the second half of `xz`.

No bundle has this node: there standard ONNX says it, with Split, RMSNormalization and MatMul before
SelectiveScan. A build of engines puts it in their place, as each of them is a kernel in TensorRT.
"""

OPERATORS = (SELECTIVE_SCAN, SPARSE_MOE, CAUSAL_CONV, CACHED_ATTENTION, MAMBA_SCAN)
"""Every operator that some back end needs from us."""
