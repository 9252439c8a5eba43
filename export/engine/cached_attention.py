"""Attention over a cache becomes our operator, which reads the cache where it lies.

TensorRT's own attention would copy keys and values of the whole cache, once for every head, in every layer of every call,
and make a mask of all positions. Ours takes queries and gives results as the projections have them, so that nothing is
transposed around it. Queries that are rotated are transposed back behind the rotation: TensorRT makes one kernel of both, as it
makes one of the rotation of keys and the write of the caches. The bundle's graph keeps the standard nodes, which any runtime knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from longllava_trt.core.errors import ExportError
from longllava_trt.export.engine.nodes import drop_unused
from longllava_trt.plugins_trt.spec import CACHED_ATTENTION

__all__ = ["LENGTHS_INPUT", "attend_where_caches_lie"]

LENGTHS_INPUT = 6
"""Place of `nonpad_kv_seqlen` among the inputs of ONNX's Attention."""

_HEADS_FIRST = [0, 2, 1, 3]
"""From [batch, seq_len, heads, head_dim] to [batch, heads, seq_len, head_dim], and back."""
_MEANINGS = {"is_causal": 1, "softmax_precision": TensorProto.FLOAT}
"""Attributes of Attention that our operator computes; what others would ask, it does not."""


@dataclass(frozen=True, slots=True)
class _Site:
    """One attention over a cache, and what lies around it."""

    attention: onnx.NodeProto
    into: onnx.NodeProto
    """Transposes the queries, or rotates them after that."""
    out: onnx.NodeProto
    """Transposes the results."""
    past_len: str


def attend_where_caches_lie(graph: onnx.GraphProto) -> None:
    """Put `CachedAttention` in the place of each Attention that has key/value lengths.

    Args:
        graph: As exported; changed in place.

    Raises:
        ExportError: If such a node is not causal attention over two caches that were written just before.
    """
    nodes = [node for node in graph.node if _has_lengths(node)]
    if not nodes:
        return
    made = {name: node for node in graph.node for name in node.output}
    users = {name: node for node in graph.node for name in node.input}
    sites = [_find_site(graph.name, node, made, users) for node in nodes]
    for past_len in dict.fromkeys(site.past_len for site in sites):
        cast = helper.make_node("Cast", [past_len], [_narrow(past_len)], to=TensorProto.INT32)
        graph.node.insert(0, cast)
    for site in sites:
        _replace(graph, site)
    drop_unused(graph)


def _has_lengths(node: onnx.NodeProto) -> bool:
    return node.op_type == "Attention" and len(node.input) > LENGTHS_INPUT


def _find_site(
    stage: str,
    node: onnx.NodeProto,
    made: dict[str, onnx.NodeProto],
    users: dict[str, onnx.NodeProto],
) -> _Site:
    into, out = made.get(node.input[0]), users.get(node.output[0])
    caches = [made.get(name) for name in node.input[1:3]]
    written = {c.input[2] for c in caches if c is not None and c.op_type == "TensorScatter"}
    lengths = made.get(node.input[LENGTHS_INPUT])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    problems = []
    if {"softmax_precision": TensorProto.FLOAT, **attributes} != _MEANINGS:
        problems.append(f"attributes must be {_MEANINGS}, got {attributes}")
    if any(node.input[3:LENGTHS_INPUT]):
        problems.append("no mask and no past can be given")
    if None in caches or len(written) != 1:
        problems.append("keys and values must be written by TensorScatter, at the same positions")
    if lengths is None or lengths.op_type != "Add" or not written & set(lengths.input):
        problems.append("lengths must be those positions and the new ones")
    if not ((_turns(into) or _rotates(into)) and _turns(out)):
        problems.append("queries and results must be transposed")
    if problems or into is None or out is None:
        raise ExportError(
            f"{stage}: attention '{node.output[0]}' cannot be {CACHED_ATTENTION.op_type}: "
            f"{'; '.join(problems)}; export the bundle again"
        )
    return _Site(node, into, out, written.pop())


def _turns(node: onnx.NodeProto | None) -> bool:
    """Tell whether a node swaps heads and tokens."""
    return (
        node is not None
        and node.op_type == "Transpose"
        and helper.get_node_attr_value(node, "perm") == _HEADS_FIRST
    )


def _rotates(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "RotaryEmbedding"


def _narrow(name: str) -> str:
    return f"{name}.int32"


def _replace(graph: onnx.GraphProto, site: _Site) -> None:
    queries = site.into.input[0]
    if _rotates(site.into):
        rotated, queries = site.into.output[0], f"{site.into.output[0]}.turned"
        turn = helper.make_node("Transpose", [rotated], [queries], perm=_HEADS_FIRST)
        graph.node.insert(list(graph.node).index(site.attention), turn)
    node = helper.make_node(
        CACHED_ATTENTION.op_type,
        [queries, *site.attention.input[1:3], _narrow(site.past_len)],
        list(site.out.output),
        domain=CACHED_ATTENTION.domain,
    )
    graph.node.insert(list(graph.node).index(site.attention), node)
    graph.node.remove(site.attention)
    graph.node.remove(site.out)
