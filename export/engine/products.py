"""Matrix products whose result is split in two for our operators become two products.

Each reads its own rows of the weight, which are contiguous. Without this, TensorRT would copy each
half of the joint result with another kernel, since plugins take only whole tensors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.plugins_trt.spec import OPERATORS

__all__ = ["split_products"]


@dataclass(frozen=True, slots=True)
class _Joint:
    """A weight, its transposition, the product with it, and the node that splits the result."""

    weight: EngineWeight
    turn: onnx.NodeProto
    product: onnx.NodeProto
    split: onnx.NodeProto


def split_products(
    graph: onnx.GraphProto, weights: Sequence[EngineWeight]
) -> tuple[EngineWeight, ...]:
    """Give each half of a result its own product, if only our operators read the halves.

    Args:
        graph: After `externalize_weights` and `convolve_channels_last`; changed in place.
        weights: Result of `externalize_weights`.

    Returns:
        The weights, with the parts `WEIGHT.0`, `WEIGHT.1` instead of each weight that was split.
    """
    found = {joint.weight.name: joint for joint in _joints(graph, weights)}
    kept: list[EngineWeight] = []
    for weight in weights:
        joint = found.get(weight.name)
        pieces = _pieces(joint) if joint else (weight,)
        if joint:
            _replace(graph, joint, pieces)
        kept.extend(pieces)
    return tuple(kept)


def _joints(graph: onnx.GraphProto, weights: Sequence[EngineWeight]) -> Iterator[_Joint]:
    made = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    by_name = {weight.name: weight for weight in weights}
    for split in _halved_for_ours(graph):
        product = made.get(split.input[0])
        turn = made.get(product.input[1]) if product and product.op_type == "MatMul" else None
        if product is None or turn is None or turn.op_type != "Transpose":
            continue
        weight = by_name.get(turn.input[0])
        alone = uses[turn.input[0]] == uses[turn.output[0]] == uses[product.output[0]] == 1
        if weight is not None and alone and len(weight.parts) == 1 and weight.shape[0] % 2 == 0:
            yield _Joint(weight, turn, product, split)


def _halved_for_ours(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield nodes that split the last of three axes in two halves that only our operators read."""
    ours = {(spec.domain, spec.op_type) for spec in OPERATORS}
    elsewhere = {
        name
        for node in graph.node
        if (node.domain, node.op_type) not in ours
        for name in node.input
    } | {value.name for value in graph.output}
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        halves = node.op_type == "Split" and attributes == {"axis": 2, "num_outputs": 2}
        if halves and not elsewhere.intersection(node.output):
            yield node


def _pieces(joint: _Joint) -> tuple[EngineWeight, ...]:
    weight = joint.weight
    rows = weight.shape[0] // 2
    return tuple(
        replace(
            weight,
            name=f"{weight.name}.{place}",
            shape=(rows, *weight.shape[1:]),
            parts=(_rows(weight, place * rows, rows),),
        )
        for place in range(2)
    )


def _rows(weight: EngineWeight, first: int, count: int) -> WeightPart:
    (part,) = weight.parts
    row_bytes = math.prod(weight.shape[1:]) * DTYPES[part.dtype].itemsize
    return replace(part, offset=part.offset + first * row_bytes, nbytes=count * row_bytes)


def _replace(graph: onnx.GraphProto, joint: _Joint, pieces: Sequence[EngineWeight]) -> None:
    """Replace the joint product by products with the pieces, and remove its input."""
    place = list(graph.node).index(joint.product)
    nodes = []
    for piece, output in zip(pieces, joint.split.output, strict=True):
        turned = f"{piece.name}.turned"
        nodes.append(helper.make_node("Transpose", [piece.name], [turned], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", [joint.product.input[0], turned], [output]))
    for node in reversed(nodes):
        node.name = node.output[0]
        graph.node.insert(place, node)
    for node in (joint.turn, joint.product, joint.split):
        graph.node.remove(node)
    old = next(i for i, v in enumerate(graph.input) if v.name == joint.weight.name)
    elem_type = graph.input[old].type.tensor_type.elem_type
    del graph.input[old]
    for shift, piece in enumerate(pieces):
        value = helper.make_tensor_value_info(piece.name, elem_type, piece.shape)
        graph.input.insert(old + shift, value)
