"""Find what the exporter writes for attention and for the convolution, and put one CPU node in its place.

The standard operators want heads and channels in front of time, so the exporter transposes around them; the CPU
kernels take values as the projections give them. What does not match to the last attribute stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from longllava_trt.plugins_trt.cpu.graph_nodes import names_read, replace_nodes
from longllava_trt.plugins_trt.cpu.op_names import ATTENTION, CAUSAL_CONV, DOMAIN

if TYPE_CHECKING:
    import onnx

__all__ = ["fuse_mixers"]


_SWAP_HEADS, _SWAP_CHANNELS = [0, 2, 1, 3], [0, 2, 1]
_BATCH, _SEQ_LEN = "batch", "seq_len"


def fuse_mixers(graph: onnx.GraphProto) -> None:
    """Replace attention with its cache, and the convolution with its state, by nodes of the CPU kernels.

    Outputs of the graph keep their names. What only served the replaced nodes is dropped.

    Args:
        graph: Changed in place; only nodes of its top level are looked at.
    """
    values = _Values(graph)
    matches = [match for node in graph.node if (match := _match(node, values))]
    places = {match.replaced[-1].output[0]: match.fused for match in matches}
    gone = {name for match in matches for node in match.replaced for name in node.output}
    nodes = []
    for node in graph.node:
        if node.output[0] in places:
            nodes.append(places[node.output[0]])
        elif node.output[0] not in gone:
            nodes.append(node)
    replace_nodes(graph, nodes, read_before=names_read(graph))


class _Match(NamedTuple):
    """A node to put in the place of the last of those that it replaces."""

    fused: onnx.NodeProto
    replaced: tuple[onnx.NodeProto, ...]


class _Heads(NamedTuple):
    """A value that is seen as [batch, heads, seq_len, head_dim]."""

    source: str
    heads: int
    head_dim: int


class _Append(NamedTuple):
    """New positions written into a cache."""

    node: onnx.NodeProto
    past: str
    new: str
    past_len: str


class _Values:
    """Producer and readers of each value of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._outputs = {value.name for value in graph.output}
        self._inputs = {value.name: value.type.tensor_type for value in graph.input}
        self._constants = {i.name: i for i in graph.initializer}

    def made_by(self, name: str, op_type: str, **attributes: Any) -> onnx.NodeProto | None:
        """Return the node that makes a value, if it is such a node of ONNX with just these attributes."""
        node = self._makers.get(name)
        return node if node is not None and _is(node, op_type, attributes) else None

    def only_read_by(self, name: str, op_type: str, **attributes: Any) -> onnx.NodeProto | None:
        """Return the one node that reads a value which is no output, if it is such a node."""
        readers = self._readers[name]
        if len(readers) != 1 or name in self._outputs or readers[0].input[0] != name:
            return None
        return readers[0] if _is(readers[0], op_type, attributes) else None

    def is_float32_input(self, name: str) -> bool:
        """Return whether a value is fed to the graph as float32."""
        from onnx import TensorProto

        return name in self._inputs and self._inputs[name].elem_type == TensorProto.FLOAT

    def heads(self, name: str) -> _Heads | None:
        """Return whose last axis was split into heads, and these moved in front of time."""
        swap = self.made_by(name, "Transpose", perm=_SWAP_HEADS)
        split = swap and self.made_by(swap.input[0], "Reshape", allowzero=1)
        shape = split and self.shape(split.input[1])
        if not split or not shape or len(shape) != 4 or shape[:2] != [_BATCH, _SEQ_LEN]:
            return None
        return _Heads(split.input[0], int(shape[2]), int(shape[3]))

    def append(self, name: str) -> _Append | None:
        """Return what wrote a cache that one attention reads."""
        node = self.made_by(name, "TensorScatter", axis=2)
        if node is None or len(node.input) != 3 or len(self._readers[name]) != 1:
            return None
        return _Append(node, *node.input) if self.is_float32_input(node.input[0]) else None

    def is_total_len(self, name: str, past_len: str) -> bool:
        """Return whether a value is the past length and the new one."""
        total = self.made_by(name, "Add")
        if total is None or total.input[0] != past_len:
            return False
        number = self.made_by(total.input[1], "Squeeze")
        return number is not None and self._extent(number.input[0]) == _SEQ_LEN

    def shape(self, name: str) -> list[int | str] | None:
        """Return the parts of a shape: numbers, or the graph's own batch and seq_len."""
        parts = self.made_by(name, "Concat", axis=0)
        extents = [self._extent(part) for part in parts.input] if parts else [None]
        return None if None in extents else [e for e in extents if e is not None]

    def _extent(self, name: str) -> int | str | None:
        from onnx import TensorProto, numpy_helper

        if constant := self._constants.get(name):
            is_here = constant.data_location != TensorProto.EXTERNAL
            return (
                int(numpy_helper.to_array(constant)[0])
                if is_here and constant.dims == [1]
                else None
            )
        for axis, extent in enumerate((_BATCH, _SEQ_LEN)):
            node = self.made_by(name, "Shape", start=axis, end=axis + 1)
            if node is not None and node.input[0] in self._inputs:
                return extent
        return None


def _is(node: onnx.NodeProto, op_type: str, attributes: dict[str, Any]) -> bool:
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return (node.domain, node.op_type, found) == ("", op_type, attributes)


def _match(node: onnx.NodeProto, values: _Values) -> _Match | None:
    if _is(node, "Attention", {"is_causal": 1, "softmax_precision": 1}):
        return _match_attention(node, values)
    if _is(node, "CausalConvWithState", {"activation": b"silu"}):
        return _match_conv(node, values)
    return None


def _match_attention(node: onnx.NodeProto, values: _Values) -> _Match | None:
    from onnx import helper

    if len(node.input) != 7 or any(node.input[3:6]) or len(node.output) != 1:
        return None
    key, value = values.append(node.input[1]), values.append(node.input[2])
    if key is None or value is None or key.past_len != value.past_len:
        return None
    q, k, v = values.heads(node.input[0]), values.heads(key.new), values.heads(value.new)
    swap = values.only_read_by(node.output[0], "Transpose", perm=_SWAP_HEADS)
    join = swap and values.only_read_by(swap.output[0], "Reshape", allowzero=1)
    if not (q and k and v and swap and join) or k[1:] != v[1:] or q.head_dim != k.head_dim:
        return None
    if values.shape(join.input[1]) != [_BATCH, _SEQ_LEN, q.heads * q.head_dim]:
        return None
    if not values.is_total_len(node.input[6], key.past_len):
        return None
    inputs = [q.source, k.source, v.source, key.past, value.past, key.past_len]
    outputs = [join.output[0], node.input[1], node.input[2], f"{join.output[0]}.scratch"]
    fused = helper.make_node(ATTENTION, inputs, outputs, node.name, domain=DOMAIN)
    return _Match(fused, (key.node, value.node, node, swap, join))


def _match_conv(node: onnx.NodeProto, values: _Values) -> _Match | None:
    from onnx import helper

    if len(node.input) != 4 or not all(node.input) or len(node.output) != 2:
        return None
    before = values.made_by(node.input[0], "Transpose", perm=_SWAP_CHANNELS)
    after = values.only_read_by(node.output[0], "Transpose", perm=_SWAP_CHANNELS)
    if before is None or after is None or not values.is_float32_input(node.input[3]):
        return None
    inputs = [before.input[0], *node.input[1:]]
    outputs = [after.output[0], node.output[1]]
    fused = helper.make_node(CAUSAL_CONV, inputs, outputs, node.name, domain=DOMAIN)
    return _Match(fused, (node, after))
