"""Putting other nodes in the place of a graph's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["replace_nodes"]


def replace_nodes(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Give a graph other nodes, in order, leaving out those that only made what nobody reads any more."""
    before = {name for node in graph.node for name in node.input}
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        # what nobody read before either may be asked for by name
        if any(name in read or name not in before for name in node.output):
            kept.append(node)
            read.update(node.input)
    del graph.node[:]
    graph.node.extend(kept[::-1])
