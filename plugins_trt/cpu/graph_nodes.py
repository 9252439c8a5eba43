"""Putting other nodes in the place of a graph's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["names_read", "replace_nodes"]


def names_read(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the values that some node reads."""
    return {name for node in graph.node for name in node.input}


def replace_nodes(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], *, read_before: set[str]
) -> None:
    """Give a graph other nodes, in order, leaving out those that only made what nobody reads any more.

    Args:
        graph: Changed in place.
        nodes: May be the graph's own.
        read_before: `names_read` of the graph before any node was changed.
    """
    read = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        # what nobody read before either may be asked for by name
        if any(name in read or name not in read_before for name in node.output):
            kept.append(node)
            read.update(node.input)
    del graph.node[:]
    graph.node.extend(kept[::-1])
