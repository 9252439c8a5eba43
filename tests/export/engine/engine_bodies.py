"""Operators of engines' graphs in standard ONNX, so that ONNX Runtime computes graphs that were rewritten for TensorRT."""

from __future__ import annotations

import onnx
from onnx import parser

from longllava_trt.plugins_trt.spec import CACHED_ATTENTION, MAMBA_SCAN, OperatorSpec

__all__ = ["add_engine_bodies"]

_ATTENTION = """
{
    turned = Transpose<perm = [0, 2, 1, 3]>(q)
    seq_len = Shape<start = 1, end = 2>(q)
    past = Cast<to = 7>(past_len)
    lengths = Add(past, seq_len)
    result = Attention<is_causal = 1, softmax_precision = 1>(turned, key_cache, value_cache, , , , lengths)
    y = Transpose<perm = [0, 2, 1, 3]>(result)
}
"""
_SCAN = """
{
    dt_rank = Shape(dt_norm_weight)
    d_state = Shape(b_norm_weight)
    sizes = Concat<axis = 0>(dt_rank, d_state, d_state)
    dt_part, b_part, c_part = Split<axis = 2>(projected, sizes)
    low = RMSNormalization<axis = -1, epsilon: float = @eps>(dt_part, dt_norm_weight)
    B = RMSNormalization<axis = -1, epsilon: float = @eps>(b_part, b_norm_weight)
    C = RMSNormalization<axis = -1, epsilon: float = @eps>(c_part, c_norm_weight)
    weight = Transpose<perm = [1, 0]>(dt_proj_weight)
    dt = MatMul(low, weight)
    x, z = Split<axis = 2, num_outputs = 2>(xz)
    y, state_out = longllava.SelectiveScan(u, dt, A_log, B, C, D, z, dt_bias, state)
}
"""


def add_engine_bodies(model: onnx.ModelProto) -> None:
    """Give a model the operators' bodies, in place."""
    for spec, body in ((CACHED_ATTENTION, _ATTENTION), (MAMBA_SCAN, _SCAN)):
        model.functions.append(_function(spec, body))


def _function(spec: OperatorSpec, body: str) -> onnx.FunctionProto:
    attributes = ", ".join(attribute.name for attribute in spec.attributes)
    head = f'<domain: "{spec.domain}", opset_import: ["": 27, "longllava": 1]>\n{spec.op_type} '
    head += f"<{attributes}> " if attributes else ""
    values = ", ".join(spec.input_names), ", ".join(spec.output_names)
    return parser.parse_function(f"{head}({values[0]}) => ({values[1]}) {body}")
