"""CachedAttention in standard ONNX, so that ONNX Runtime computes graphs that were rewritten for TensorRT."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from longllava_trt.plugins_trt.spec import CACHED_ATTENTION

__all__ = ["add_attention_body"]


def add_attention_body(model: onnx.ModelProto) -> None:
    """Give a model the operator's body, in place."""
    perm = [0, 2, 1, 3]
    nodes = [
        helper.make_node("Transpose", ["q"], ["turned"], perm=perm),
        helper.make_node("Shape", ["q"], ["seq_len"], start=1, end=2),
        helper.make_node("Cast", ["past_len"], ["past"], to=TensorProto.INT64),
        helper.make_node("Add", ["past", "seq_len"], ["lengths"]),
        helper.make_node(
            "Attention",
            ["turned", "key_cache", "value_cache", "", "", "", "lengths"],
            ["result"],
            is_causal=1,
            softmax_precision=TensorProto.FLOAT,
        ),
        helper.make_node("Transpose", ["result"], ["y"], perm=perm),
    ]
    standard = [opset for opset in model.opset_import if not opset.domain]
    body = helper.make_function(
        CACHED_ATTENTION.domain,
        CACHED_ATTENTION.op_type,
        CACHED_ATTENTION.input_names,
        CACHED_ATTENTION.output_names,
        nodes,
        standard,
    )
    model.functions.append(body)
