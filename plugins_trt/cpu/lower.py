"""Give a loaded graph the CPU kernels, in memory; the file on disk is never touched.

Our operators become those of `operators.py`, and so does every product with a stored matrix. What only prepared weights
for the node that reads them is dropped: the transposition in front of a product, the cast to float32, the stack of
experts; embeddings are cast after they were looked up. The kernels read the checkpoint's own bytes, so that a session holds no second copy of any weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from longllava_trt.core.dtypes import FLOATS, onnx_name
from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.cpu.graph_nodes import names_read, replace_nodes
from longllava_trt.plugins_trt.cpu.lower_mixers import fuse_mixers
from longllava_trt.plugins_trt.cpu.op_names import DOMAIN, LINEAR, MOE, MOE_CODES, MOE_STACKED, SCAN
from longllava_trt.plugins_trt.spec import SELECTIVE_SCAN, SPARSE_MOE
from longllava_trt.plugins_trt.stored_values import StoredValues

if TYPE_CHECKING:
    import onnx

__all__ = ["lower_for_cpu"]

_LOWERED = {
    (SELECTIVE_SCAN.domain, SELECTIVE_SCAN.op_type),
    (SPARSE_MOE.domain, SPARSE_MOE.op_type),
}


def lower_for_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the custom operators of a float32 graph, and its dense layers, by CPU kernels.

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
    fuse_mixers(model.graph)
    graph, read_before = _Graph(model.graph), names_read(model.graph)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if (node.domain, node.op_type) == (SELECTIVE_SCAN.domain, SELECTIVE_SCAN.op_type):
            node.domain, node.op_type = DOMAIN, SCAN
        elif (node.domain, node.op_type) == (SPARSE_MOE.domain, SPARSE_MOE.op_type):
            node.CopyFrom(_moe_node(node, graph))
        elif weight := graph.multiplied_weight(node):
            node.CopyFrom(_node(LINEAR, [node.input[0], weight], [node.output[0]], node.name))
        elif table := graph.cast_table(node):
            nodes.append(graph.lookup(node, table))
        nodes.append(node)
    replace_nodes(model.graph, nodes, read_before=read_before)
    _drop_bodies(model)
    _import_domain(model)
    return model


class _Graph:
    """Producers of the values of a graph, and the values that are weights."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._stored = StoredValues(graph)

    def multiplied_weight(self, node: onnx.NodeProto) -> str | None:
        """Return the stored [out, in] matrix that a node multiplies with, if that is all it does."""
        from onnx import helper

        if node.domain or not node.input:
            return None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm" and len(node.input) == 2:
            plain = attributes.get("alpha", 1.0) == 1.0 and not attributes.get("transA", 0)
            return self._matrix(node.input[1]) if plain and attributes.get("transB", 0) else None
        maker = self._makers.get(node.input[-1])
        if node.op_type != "MatMul" or maker is None or maker.op_type != "Transpose":
            return None
        order = {a.name: helper.get_attribute_value(a) for a in maker.attribute}.get("perm", [1, 0])
        return self._matrix(maker.input[0]) if order == [1, 0] else None

    def cast_table(self, node: onnx.NodeProto) -> str | None:
        """Return the stored 16-bit matrix whose rows a node picks after all of it was cast to float32."""
        if node.domain or node.op_type != "Gather" or node.input[0] not in self._makers:
            return None
        return self._matrix(node.input[0])

    def lookup(self, node: onnx.NodeProto, table: str) -> onnx.NodeProto:
        """Return a node that picks the rows; the one given casts them from then on."""
        from onnx import TensorProto, helper

        picked = type(node)()
        picked.CopyFrom(node)
        picked.input[0], picked.output[0] = table, f"{node.output[0]}.stored"
        node.CopyFrom(
            helper.make_node("Cast", [picked.output[0]], [node.output[0]], to=TensorProto.FLOAT)
        )
        return picked

    def experts(self, gate_up: str, down: str) -> list[str] | None:
        """Return gate, up and down of each expert, where both stacks are made of stored matrices."""
        pairs, downs = self._matrices(gate_up), self._matrices(down)
        if pairs is None or downs is None or len(pairs) != 2 * len(downs):
            return None
        # gate and up rows may be joined before or after the experts are: in memory it is the same
        triples = zip(pairs[::2], pairs[1::2], downs, strict=True)
        return [name for triple in triples for name in triple]

    def _matrix(self, name: str) -> str | None:
        """Return the one stored matrix that a value is, in any float and cast to float32 or not at all."""
        value = self._stored.get(name)
        names = self._matrices(name)
        is_whole = value is not None and len(value.weights) == 1 and len(value.shape) == 2
        return names[0] if names and is_whole else None

    def _matrices(self, name: str) -> list[str] | None:
        """Return the stored matrices that a value is made of, if it is made of nothing else."""
        from onnx import TensorProto

        value, floats = self._stored.get(name), [dtype.onnx for dtype in FLOATS]
        if value is None or value.dtype != TensorProto.FLOAT:
            return None
        if any(len(w.dims) != 2 or w.data_type not in floats for w in value.weights):
            return None
        if len({tuple(weight.dims) for weight in value.weights}) != 1:
            return None
        return [weight.name for weight in value.weights]


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
            + onnx_name(dtypes.get(node.input[0], 0))
            for node in nodes
            if dtypes.get(node.input[0], 0) != TensorProto.FLOAT
        }
    )
    if wrong:
        raise ContractError(
            f"lower_for_cpu: the CPU kernels compute in float32, but {', '.join(wrong)}; "
            "export with --dtype float32, or run the graph as it is, on its function bodies"
        )


def _node(kind: str, inputs: list[str], outputs: list[str], name: str) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(kind, inputs, outputs, name, domain=DOMAIN)


def _moe_node(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto:
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top_k, weight_format = (a.name for a in SPARSE_MOE.attributes)
    x, router_logits, gate_up, down, *scales = node.input
    weights, kind = [gate_up, down, *scales], MOE_STACKED
    if scales:
        kind = MOE_CODES[attributes[weight_format].decode()]
    elif matrices := graph.experts(gate_up, down):
        weights, kind = matrices, MOE
    outputs = [node.output[0], f"{node.output[0]}.scratch"]
    made = _node(kind, [x, router_logits, *weights], outputs, node.name)
    made.attribute.append(helper.make_attribute(top_k, attributes[top_k]))
    return made


def _drop_bodies(model: onnx.ModelProto) -> None:
    kept = [f for f in model.functions if (f.domain, f.name) not in _LOWERED]
    del model.functions[:]
    model.functions.extend(kept)


def _import_domain(model: onnx.ModelProto) -> None:
    from onnx import helper

    imported = {opset.domain for opset in model.opset_import}
    if DOMAIN not in imported and any(node.domain == DOMAIN for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
