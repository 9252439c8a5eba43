"""Is a parsed network what the stage is: nothing lost, nothing taken apart, everything in its dtype.

Runs at every build. What should be there is told by the stage's contract and its weights, not by the graph, so that a
graph in which an operator was replaced does not agree with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.engine_record import EngineWeight
from longllava_trt.core.errors import ExportError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec, present_name
from longllava_trt.export.engine.network import (
    StageNetwork,
    attention_layers,
    network_layers,
    node_name,
)
from longllava_trt.models.parameters import (
    VISION_QUERIES,
    attention_path,
    mamba_path,
    path_ending,
    router_path,
)
from longllava_trt.plugins_trt.registry import CREATOR_VERSION, TensorRT
from longllava_trt.plugins_trt.spec import (
    CACHED_ATTENTION,
    CAUSAL_CONV,
    MAMBA_SCAN,
    OPERATORS,
    SPARSE_MOE,
)

__all__ = ["AuditReport", "audit_network"]

_TOLD_BY = {
    MAMBA_SCAN.op_type: path_ending(mamba_path(0, "A_log")),
    CAUSAL_CONV.op_type: path_ending(mamba_path(0, "conv1d.weight")),
    SPARSE_MOE.op_type: path_ending(router_path(0)),
    CACHED_ATTENTION.op_type: path_ending(attention_path(0, "q_proj.weight")),
}
"""The parameter that each operator has exactly one of."""
_MATRIX_LAYERS = ("MATRIX_MULTIPLY", "CONVOLUTION", "EINSUM")
_DTYPES = {dtype.tensorrt: dtype.name for dtype in DTYPES.values()}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Contents of a network."""

    num_layers: int
    plugins: Mapping[str, int]
    """Plugin layers by name."""
    attention: Mapping[str, str]
    """TensorRT's own, by node: `fused` or `decomposable`."""


def audit_network(
    tensorrt: TensorRT,
    parsed: StageNetwork,
    *,
    spec: StageSpec,
    inputs: Sequence[EngineWeight],
    weights: Iterable[str],
    dtype: str,
) -> AuditReport:
    """Compare a network with its stage.

    Args:
        tensorrt: Who parsed it.
        parsed: The network.
        spec: The stage's contract, from `engine_spec`.
        inputs: Weights that are inputs.
        weights: Paths of all parameters of the stage.
        dtype: What the stage computes in.

    Raises:
        ExportError: Says everything that is wrong.
    """
    trt = tensorrt.module
    paths = list(weights)
    problems = [
        *_lost_nodes(trt, parsed),
        *_plugin_problems(trt, parsed, paths),
        *_attention_problems(trt, parsed, paths),
        *_cache_problems(trt, parsed, spec),
        *_wide_products(parsed, dtype),
        *_io_problems(parsed.network, spec, inputs),
    ]
    if problems:
        raise ExportError(
            f"{spec.name}: the network TensorRT made is not the stage: {'; '.join(problems)}"
        )
    return AuditReport(
        num_layers=parsed.network.num_layers,
        plugins=dict(Counter(name for _, name, _ in _plugins(trt, parsed))),
        attention={
            node.name: "decomposable" if attention.decomposable else "fused"
            for node, attention in attention_layers(trt, parsed)
        },
    )


def _lost_nodes(trt: Any, parsed: StageNetwork) -> Iterator[str]:
    found = {node_name(layer) for layer in network_layers(parsed.network)}
    found |= {node.name for node, _ in attention_layers(trt, parsed)}
    for node in parsed.model.graph.node:
        if node.name not in found:
            yield f"node {node.op_type} '{node.name}' has no layer"


def _plugins(trt: Any, parsed: StageNetwork) -> Iterator[tuple[str, str, str]]:
    """Yield node, name and version of each plugin layer."""
    for layer in network_layers(parsed.network):
        if layer.type == trt.LayerType.PLUGIN_V3:
            # the bindings of TensorRT-RTX 1.7 give the layer no class of its own
            layer.__class__ = trt.IPluginV3Layer
            core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
            yield node_name(layer), core.plugin_name, core.plugin_version


def _plugin_problems(trt: Any, parsed: StageNetwork, paths: list[str]) -> Iterator[str]:
    ours = {(spec.domain, spec.op_type) for spec in OPERATORS}
    wanted = Counter(
        (node.name, node.op_type, CREATOR_VERSION)
        for node in parsed.model.graph.node
        if (node.domain, node.op_type) in ours
    )
    found = Counter(_plugins(trt, parsed))
    for node, op_type, version in wanted - found:
        yield f"'{node}' must be one plugin layer {op_type} {version}"
    for node, op_type, version in found - wanted:
        yield f"'{node}' must be no plugin layer, got {op_type} {version}"
    for op_type, parameter in _TOLD_BY.items():
        must = sum(path.endswith(parameter) for path in paths)
        got = sum(name == op_type for _, name, _ in found.elements())
        if got != must:
            yield f"{op_type} must be {must} plugin layers, one for each parameter '*{parameter}', got {got}"
    for name in {name for _, name, _ in found} - _TOLD_BY.keys():
        yield f"{name} must be no plugin layer of an engine"


def _attention_problems(trt: Any, parsed: StageNetwork, paths: list[str]) -> Iterator[str]:
    must = sum(path.endswith(VISION_QUERIES) for path in paths)
    found = list(attention_layers(trt, parsed))
    if len(found) != must:
        yield f"must have {must} attention layers of TensorRT's, one for each parameter '*{VISION_QUERIES}', got {len(found)}"
    for node, attention in found:
        if attention.causal_kind != trt.CausalMaskKind.NONE:
            yield f"attention '{node.name}' must not be {attention.causal_kind}"
        if attention.key_value_lengths is not None:
            yield f"attention '{node.name}' must not have key/value lengths"
        if attention.decomposable and attention.get_input(0).dtype != trt.float32:
            yield f"attention '{node.name}' must be fused"
        taken = [attention.get_input(place).name for place in range(3)]
        if taken != list(node.input[:3]):
            yield f"attention '{node.name}' must take {', '.join(node.input[:3])}, got {', '.join(taken)}"


def _cache_problems(trt: Any, parsed: StageNetwork, spec: StageSpec) -> Iterator[str]:
    wanted = {
        (t.name, present_name(t.name)) for t in spec.inputs if t.name.endswith((".key", ".value"))
    }
    found = [
        (layer.get_input(0).name, layer.get_output(0).name)
        for layer in network_layers(parsed.network)
        if layer.type == trt.LayerType.KV_CACHE_UPDATE
    ]
    for past, present in sorted(wanted - set(found)):
        yield f"'{present}' must be '{past}', updated in place"
    if len(found) > len(wanted):
        yield f"must have {len(wanted)} KV-cache updates, got {len(found)}"


def _wide_products(parsed: StageNetwork, dtype: str) -> Iterator[str]:
    """Yield products in another dtype than the stage's; none is meant to be in float32."""
    for layer in network_layers(parsed.network):
        if layer.type.name in _MATRIX_LAYERS:
            got = _dtype(layer.get_input(0))
            if got != dtype:
                yield f"{layer.type.name} '{node_name(layer)}' must be in {dtype}, got {got}"


def _io_problems(network: Any, spec: StageSpec, weights: Sequence[EngineWeight]) -> Iterator[str]:
    weight_specs = [TensorSpec(w.name, w.shape, w.dtype) for w in weights]
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for kind, got, wanted in (
        ("input", inputs, [*spec.inputs, *weight_specs]),
        ("output", outputs, list(spec.outputs)),
    ):
        if len(got) != len(wanted):
            yield f"must have {len(wanted)} {kind}s, got {len(got)}"
        for tensor, want in zip(got, wanted, strict=False):
            shape = tuple(-1 if isinstance(dim, str) else dim for dim in want.shape)
            described = (tensor.name, tuple(tensor.shape), _dtype(tensor))
            if described != (want.name, shape, want.dtype):
                yield f"{kind} must be {want.name} {list(shape)} {want.dtype}, got {described}"


def _dtype(tensor: Any) -> str:
    name = str(tensor.dtype.name)
    return _DTYPES.get(name, name.lower())
