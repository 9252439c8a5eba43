"""Questions and edits that several rewrites of a graph share."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper

__all__ = ["drop_unused", "split_halves"]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Take out the nodes whose results nobody takes, in place."""
    results = [value.name for value in graph.output]
    while True:
        used = Counter(name for node in graph.node for name in node.input) + Counter(results)
        unused = [node for node in graph.node if not any(used[name] for name in node.output)]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)


def split_halves(node: onnx.NodeProto | None) -> onnx.NodeProto | None:
    """Return a node if it splits the last of three axes in two halves, else None."""
    if node is None or node.op_type != "Split":
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    is_halving = len(node.input) == 1 and attributes == {"axis": 2, "num_outputs": 2}
    return node if is_halving else None
