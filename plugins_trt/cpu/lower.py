"""Give a loaded graph the CPU kernels, in memory; the file on disk is never touched.

`longllava::SelectiveScan` becomes the Python operator of `register.py`; `longllava::SparseMoE`
becomes ONNX Runtime's `com.microsoft::MoE`, which routes as Jamba does (softmax over all experts,
no renormalisation). Quantised experts are dequantised in front of it, once, as the graph is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longllava_trt.errors import ContractError
from plugins_trt.bodies import dequantise_body
from plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE

if TYPE_CHECKING:
    import onnx

__all__ = ["PYTHON_DOMAIN", "SCAN_OP_TYPE", "lower_for_cpu"]

PYTHON_DOMAIN = "ai.onnx.contrib"
"""Domain in which onnxruntime-extensions looks for Python operators."""
SCAN_OP_TYPE = "LongLLaVASelectiveScan"
"""The scan's name there."""
_MOE_DOMAIN = "com.microsoft"
_LOWERED = {
    (SELECTIVE_SCAN.domain, SELECTIVE_SCAN.op_type),
    (SPARSE_MOE.domain, SPARSE_MOE.op_type),
}


def lower_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the custom operators of a float32 graph by CPU kernels.

    Args:
        model: The graph, with or without its external data loaded; changed in place; only
            nodes of its top level are looked at. Sessions over the result need
            options that went through `register_kernels`.

    Returns:
        The same object.

    Raises:
        ContractError: If a custom operator computes in another dtype than float32; the model is
            then unchanged.
    """
    found = [n for n in model.graph.node if (n.domain, n.op_type) in _LOWERED]
    _require_float32(model, found)
    nodes: list[onnx.NodeProto] = []
    floats: set[str] = set()
    formats: set[str] = set()
    stacked: dict[str, str] = {}
    for node in model.graph.node:
        if (node.domain, node.op_type) == (SELECTIVE_SCAN.domain, SELECTIVE_SCAN.op_type):
            node.domain, node.op_type = PYTHON_DOMAIN, SCAN_OP_TYPE
        elif (node.domain, node.op_type) == (SPARSE_MOE.domain, SPARSE_MOE.op_type):
            nodes += _dequantising(node, floats, formats)
            nodes += _interleaving(node.input[2], stacked)
            node.CopyFrom(_moe_node(node, stacked[node.input[2]]))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _replace_bodies(model, formats)
    _import_domains(model)
    return model


def _require_float32(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Check the dtype of each node's first input, as the graph declares or implies it."""
    from onnx import TensorProto, shape_inference

    if not nodes:
        return
    dtypes = {i.name: i.data_type for i in model.graph.initializer}
    graph = model.graph
    known = {v.name for v in (*graph.input, *graph.output, *graph.value_info)} | dtypes.keys()
    if not {n.input[0] for n in nodes} <= known:
        graph = shape_inference.infer_shapes(model).graph
    dtypes |= {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.input, *graph.output, *graph.value_info)
    }
    wrong = sorted(
        {
            f"{node.op_type} '{node.name or node.output[0]}' is "
            + TensorProto.DataType.Name(dtypes.get(node.input[0], 0)).lower()
            for node in nodes
            if dtypes.get(node.input[0], 0) != TensorProto.FLOAT
        }
    )
    if wrong:
        raise ContractError(
            f"lower_for_cpu: the CPU kernels compute in float32, but {', '.join(wrong)}; "
            "export with --dtype float32, or run the graph as it is, on its function bodies"
        )


def _dequantising(
    node: onnx.NodeProto, floats: set[str], formats: set[str]
) -> list[onnx.NodeProto]:
    """Let a node with quantised experts read float32 ones; returns what makes these, once for each tensor.

    ONNX Runtime expands the function and folds it at load where the weights are constant.
    """
    from onnx import helper

    first, end = len(SPARSE_MOE.inputs) - 2, len(SPARSE_MOE.inputs)
    stored = list(zip(node.input[first:end], node.input[end:], strict=False))
    if not stored:
        return []
    weight_format = helper.get_node_attr_value(node, SPARSE_MOE.attributes[1].name).decode()
    body = dequantise_body(weight_format)
    formats.add(weight_format)
    made = []
    for place, (codes, scales) in enumerate(stored, start=first):
        node.input[place] = name = f"{codes}.float32"
        if name not in floats:
            floats.add(name)
            made.append(helper.make_node(body.name, [codes, scales], [name], domain=body.domain))
    del node.input[end:]
    return made


def _interleaving(gate_up: str, stacked: dict[str, str]) -> list[onnx.NodeProto]:
    """Return nodes that turn rows gate-then-up into gate, up, gate, up, ...; none the second time.

    The MoE kernel is exact in that layout only. ONNX Runtime folds the nodes at load where the
    weights are constant.
    """
    from onnx import helper

    if gate_up in stacked:
        return []
    stacked[gate_up] = name = f"{gate_up}.interleaved"
    halves, turned = f"{name}.halves", f"{name}.turned"
    shapes = [f"{name}.split_shape", f"{name}.shape"]
    return [
        helper.make_node("Shape", [gate_up], [f"{name}.experts"], start=0, end=1),
        helper.make_node("Shape", [gate_up], [f"{name}.width"], start=2, end=3),
        helper.make_node("Constant", [], [f"{name}.two"], value_ints=[2]),
        helper.make_node("Constant", [], [f"{name}.rest"], value_ints=[-1]),
        helper.make_node(
            "Concat",
            [f"{name}.experts", f"{name}.two", f"{name}.rest", f"{name}.width"],
            [shapes[0]],
            axis=0,
        ),
        helper.make_node(
            "Concat", [f"{name}.experts", f"{name}.rest", f"{name}.width"], [shapes[1]], axis=0
        ),
        helper.make_node("Reshape", [gate_up, shapes[0]], [halves]),
        helper.make_node("Transpose", [halves], [turned], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [turned, shapes[1]], [name]),
    ]


def _moe_node(node: onnx.NodeProto, gate_up: str) -> onnx.NodeProto:
    from onnx import helper

    x, router_logits, _, down = node.input
    return helper.make_node(
        "MoE",
        [x, router_logits, gate_up, "", down, ""],
        list(node.output),
        node.name,
        domain=_MOE_DOMAIN,
        k=helper.get_node_attr_value(node, SPARSE_MOE.attributes[0].name),
        activation_type="swiglu",
        # gate and up rows alternate
        swiglu_fusion=1,
        # swiglu here is gate * sigmoid(alpha * gate) * (up + beta)
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
    )


def _replace_bodies(model: onnx.ModelProto, formats: set[str]) -> None:
    """Drop the bodies that nothing calls any more; add the one that `_dequantising` calls."""
    kept = [f for f in model.functions if (f.domain, f.name) not in _LOWERED]
    del model.functions[:]
    model.functions.extend(kept)
    model.functions.extend(dequantise_body(name) for name in sorted(formats))


def _import_domains(model: onnx.ModelProto) -> None:
    from onnx import helper

    imported = {opset.domain for opset in model.opset_import}
    used = {node.domain for node in model.graph.node} & {PYTHON_DOMAIN, _MOE_DOMAIN}
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(used - imported))
