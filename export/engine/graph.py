"""A bundle's graph in TensorRT's terms: a few nodes rewritten, in memory; the file stays as it is.

Every rewrite says what TensorRT would otherwise do. Knows ONNX only; TensorRT is met in `engine_network`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeGuard

import onnx
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.core.errors import ExportError
from longllava_trt.export.engine.cached_attention import attend_where_caches_lie
from longllava_trt.export.engine.mamba_scan import fuse_scans
from longllava_trt.export.engine.nodes import split_halves
from longllava_trt.plugins_trt.spec import CAUSAL_CONV

__all__ = ["convolve_channels_last", "fix_dims", "rewrite_for_tensorrt"]

_CHANNELS = 16
"""Divisor of d_inner that the convolution with channels last needs."""


def fix_dims(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    """Give named dims of inputs and outputs a size: TensorRT's KV cache has a fixed capacity.

    Args:
        graph: After `rewrite_for_tensorrt`; changed in place.
        sizes: By dim name.
    """
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    # what was inferred for any size would contradict it
    del graph.value_info[:]


def rewrite_for_tensorrt(graph: onnx.GraphProto) -> None:
    """Apply every rewrite, in place.

    Raises:
        ExportError: If the graph does not say what shape a query has, or has an attention over a cache or a scan that
            no operator of ours computes.
    """
    attend_where_caches_lie(graph)
    fuse_scans(graph)
    _drop_softmax_precision(graph)
    _scale_queries(graph)
    _gather_last_position(graph)
    _name_nodes(graph)


def convolve_channels_last(graph: onnx.GraphProto) -> None:
    """Let our convolution take and give tokens as its neighbours do, and drop the transposes and the split around it.

    It reads the first half of a token of in_proj's result where it lies. TensorRT would run each transpose, and each half
    that is taken out, as a kernel of its own. No other runtime knows the attribute.
    """
    made = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    users = {name: node for node in graph.node for name in node.input}
    dims = {v.name: v.type.tensor_type.shape.dim for v in graph.input}
    dropped = set()
    for node in graph.node:
        if node.op_type != CAUSAL_CONV.op_type:
            continue
        before, after = made.get(node.input[0]), users.get(node.output[0])
        d_inner = dims[node.input[3]][1].dim_value
        if d_inner % _CHANNELS or not (_turns(before) and _turns(after)):
            continue
        if uses[node.input[0]] == uses[node.output[0]] == 1:
            dropped |= {before.output[0], after.output[0]}
            taken = before.input[0]
            halves = split_halves(made.get(taken))
            is_first = halves is not None and halves.output[0] == taken
            node.input[0] = halves.input[0] if halves is not None and is_first else taken
            node.output[0] = after.output[0]
            node.attribute.append(helper.make_attribute("channels_last", 1))
    for place in reversed(range(len(graph.node))):
        if _turns(graph.node[place]) and graph.node[place].output[0] in dropped:
            del graph.node[place]


def _turns(node: onnx.NodeProto | None) -> TypeGuard[onnx.NodeProto]:
    """Tell whether a node swaps the last two of three axes."""
    return (
        node is not None
        and node.op_type == "Transpose"
        and helper.get_node_attr_value(node, "perm") == [0, 2, 1]
    )


def _drop_softmax_precision(graph: onnx.GraphProto) -> None:
    """TensorRT's parser refuses the attribute; it takes no instruction on how to compute a softmax."""
    for node in graph.node:
        if node.op_type == "Attention":
            kept = [a for a in node.attribute if a.name != "softmax_precision"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _scale_queries(graph: onnx.GraphProto) -> None:
    """TensorRT's parser would multiply queries and keys by the root of the scale, with a kernel for each.

    The queries get all of it, in float32 with one rounding, and Attention a scale of 1.
    """
    types = {v.name: v.type.tensor_type for v in graph.value_info}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Attention":
            continue
        query = node.input[0]
        if query not in types:
            raise ExportError(f"{graph.name}: '{query}' has no shape; export the bundle again")
        head_dim = types[query].shape.dim[-1].dim_value
        factor, wide, product, scaled = (
            f"{query}.{word}" for word in ("scale", "float32", "product", "scaled")
        )
        graph.initializer.append(
            helper.make_tensor(factor, TensorProto.FLOAT, [], [head_dim**-0.5])
        )
        node.input[0] = scaled
        node.attribute.append(helper.make_attribute("scale", 1.0))
        for new in (
            helper.make_node("Cast", [product], [scaled], to=types[query].elem_type),
            helper.make_node("Mul", [wide, factor], [product]),
            helper.make_node("Cast", [query], [wide], to=TensorProto.FLOAT),
        ):
            graph.node.insert(place, new)


def _gather_last_position(graph: onnx.GraphProto) -> None:
    """A Slice from -1 to the end has a size unknown to TensorRT; a Gather of -1 has size 1, as the contract says."""
    constants = {i.name: i for i in graph.initializer if not i.external_data}
    for node in graph.node:
        if node.op_type != "Slice" or any(name not in constants for name in node.input[1:]):
            continue
        starts, ends, axes, *steps = (
            numpy_helper.to_array(constants[name]).tolist() for name in node.input[1:]
        )
        if starts == [-1] and ends[0] > 2**31 and steps in ([], [[1]]):
            node.CopyFrom(helper.make_node("Gather", node.input[:2], node.output, axis=axes[0]))


def _name_nodes(graph: onnx.GraphProto) -> None:
    """A layer is traced back to its node by the node's name, so each needs one of its own."""
    for node in graph.node:
        node.name = node.output[0]
