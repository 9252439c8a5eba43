"""A rewritten graph becomes a TensorRT network: parsed, then completed where the parser leaves something out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.errors import ExportError
from longllava_trt.export.engine.graph import LENGTHS_INPUT
from longllava_trt.plugins_trt.registry import TensorRT

if TYPE_CHECKING:
    import onnx

__all__ = ["StageNetwork", "attention_layers", "network_layers", "node_name", "parse_network"]

_NODE_MARK = "[ONNX Layer: "
"""What the parser writes into a layer's metadata, before the node's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNetwork:
    """A parsed stage.

    Lifetime: the network is valid as long as its builder and parser, hence they are kept together.
    """

    model: onnx.ModelProto
    """What was parsed."""
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
    """Give attention what the parser of TensorRT-RTX 1.7 leaves out, and take away what it adds.

    It ignores `nonpad_kv_seqlen`, aligns the causal mask to the first position, and multiplies queries and keys, which
    may be the whole cache, by a scale of 1.
    """
    tensors = _tensors(parsed.network)
    for node, attention in attention_layers(trt, parsed):
        for place in range(2):
            attention.set_input(place, tensors[node.input[place]])
        if len(node.input) > LENGTHS_INPUT:
            attention.causal_kind = trt.CausalMaskKind.LOWER_RIGHT
            attention.key_value_lengths = tensors[node.input[LENGTHS_INPUT]]
        # float32 has no fused kernel
        attention.decomposable = attention.get_input(0).dtype == trt.float32


def _tensors(network: Any) -> dict[str, Any]:
    """Return what layers take and give by name: ONNX's own, for the values of the graph."""
    found = {}
    for layer in network_layers(network):
        taken = [layer.get_input(i) for i in range(layer.num_inputs)]
        given = [layer.get_output(i) for i in range(layer.num_outputs)]
        found.update({tensor.name: tensor for tensor in (*taken, *given) if tensor is not None})
    return found
