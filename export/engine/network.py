"""A rewritten graph becomes a TensorRT network: parsed, then completed where the parser leaves something out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.errors import ExportError
from longllava_trt.plugins_trt.registry import TensorRT

if TYPE_CHECKING:
    import onnx

__all__ = ["StageNetwork", "attention_layers", "network_layers", "node_name", "parse_network"]

_NODE_MARK = "[ONNX Layer: "
"""Text that the parser writes into a layer's metadata, before the node's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNetwork:
    """A parsed stage.

    Lifetime: the network is valid as long as its builder and parser, hence they are kept together.
    """

    model: onnx.ModelProto
    """A parsed network."""
    network: Any
    builder: Any
    parser: Any


def parse_network(
    tensorrt: TensorRT, model: onnx.ModelProto, log: Any, *, path: Path | None = None
) -> StageNetwork:
    """Parse a graph and complete the network.

    Args:
        tensorrt: The plugins that the graph needs must be registered with it.
        model: After `rewrite_for_tensorrt` and `fix_dims`.
        log: From `make_logger`.
        path: The graph's file, beside which external data lies; not needed if weights are inputs.

    Raises:
        ExportError: With TensorRT's own words.
    """
    trt = tensorrt.module
    builder = trt.Builder(log)
    # the only kind of network that TensorRT 11 knows; before, it has to be asked for
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # else a node with a function body, or a standard operator, would not become our plugin
    parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    if not parser.parse(model.SerializeToString(), path=str(path) if path else None):
        raise ExportError(
            f"{model.graph.name}: TensorRT cannot parse the graph: {log.last_errors()}"
        )
    parsed = StageNetwork(model=model, network=network, builder=builder, parser=parser)
    _complete_attention(trt, parsed)
    _multiply_by_weights_as_stored(trt, parsed)
    return parsed


def network_layers(network: Any) -> Iterator[Any]:
    """Yield the layers of a network in order."""
    for index in range(network.num_layers):
        yield network.get_layer(index)


def node_name(layer: Any) -> str:
    """Return the name of the ONNX node that a layer was parsed from, or '' if the parser added it."""
    return str(layer.metadata).removeprefix(_NODE_MARK).removesuffix("]")


def attention_layers(trt: Any, parsed: StageNetwork) -> Iterator[tuple[onnx.NodeProto, Any]]:
    """Yield each Attention node with its `IAttention`."""
    nodes = {node.name: node for node in parsed.model.graph.node}
    for layer in network_layers(parsed.network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # the bindings of TensorRT-RTX 1.7 give the layer no class of its own
            layer.__class__ = trt.IAttentionInputLayer
            yield nodes[layer.attention.name], layer.attention


def _complete_attention(trt: Any, parsed: StageNetwork) -> None:
    """Take away what the parser of TensorRT-RTX 1.7 adds: it multiplies queries and keys by a scale of 1."""
    tensors = _tensors(parsed.network)
    for node, attention in attention_layers(trt, parsed):
        for place in range(2):
            attention.set_input(place, tensors[node.input[place]])
        # float32 has no fused kernel
        attention.decomposable = attention.get_input(0).dtype == trt.float32


def _multiply_by_weights_as_stored(trt: Any, parsed: StageNetwork) -> None:
    """Let products transpose the weight while they read it, and drop the transposition before it.

    Weights are [out_features, in_features] and the graph says Transpose, then MatMul. With weights as inputs and a
    fixed batch TensorRT would run each Transpose as a kernel of its own in every call, over all weights.
    """
    made, uses = _producers(trt, parsed.network)
    for layer in list(network_layers(parsed.network)):
        if layer.type != trt.LayerType.MATRIX_MULTIPLY:
            continue
        layer.__class__ = trt.IMatrixMultiplyLayer
        widen = made.get(layer.get_input(1).name)
        turn = made.get(widen.get_input(0).name) if widen is not None else None
        if widen is None or turn is None or not _only_turns(turn) or not _only_widens(widen):
            continue
        if layer.op1 != trt.MatrixOperation.NONE or not uses(turn) == uses(widen) == 1:
            continue
        turn.first_transpose = (0, 1)
        ones, (rows, columns) = tuple(widen.reshape_dims)[:-2], tuple(widen.reshape_dims)[-2:]
        widen.reshape_dims = (*ones, columns, rows)
        layer.op1 = trt.MatrixOperation.TRANSPOSE


def _producers(trt: Any, network: Any) -> tuple[dict[str, Any], Callable[[Any], int]]:
    """Return the shuffles by what they give, and how often what a layer gives is taken."""
    made, taken = {}, Counter[str]()
    for layer in network_layers(network):
        taken.update(tensor.name for i in range(layer.num_inputs) if (tensor := layer.get_input(i)))
        if layer.type == trt.LayerType.SHUFFLE:
            # the bindings of TensorRT-RTX 1.7 may give the layer no class of its own
            layer.__class__ = trt.IShuffleLayer
            made[layer.get_output(0).name] = layer
    return made, lambda layer: taken[layer.get_output(0).name]


def _only_turns(shuffle: Any) -> bool:
    """Tell whether a shuffle swaps the two axes of a matrix and does nothing else."""
    rank = len(shuffle.get_input(0).shape)
    return (
        rank == 2
        and tuple(shuffle.first_transpose)[:2] == (1, 0)
        and tuple(shuffle.second_transpose)[:2] == (0, 1)
        and tuple(shuffle.get_output(0).shape) == tuple(shuffle.get_input(0).shape)[::-1]
    )


def _only_widens(shuffle: Any) -> bool:
    """Tell whether a shuffle puts axes of size 1 before a matrix and does nothing else."""
    matrix = tuple(shuffle.get_input(0).shape)
    given = tuple(shuffle.get_output(0).shape)
    return len(matrix) == 2 and given == (1,) * (len(given) - 2) + matrix and min(matrix) > 0


def _tensors(network: Any) -> dict[str, Any]:
    """Return what layers take and give by name: ONNX's own, for the values of the graph."""
    found = {}
    for layer in network_layers(network):
        taken = [layer.get_input(i) for i in range(layer.num_inputs)]
        given = [layer.get_output(i) for i in range(layer.num_outputs)]
        found.update({tensor.name: tensor for tensor in (*taken, *given) if tensor is not None})
    return found
