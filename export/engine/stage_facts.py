"""Facts about a stage before TensorRT builds it; the finished engine is compared with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longllava_trt.core.engine_record import EngineWeight, ShapeRange
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.export.engine.graph import LENGTHS_INPUT
from longllava_trt.export.engine.network import StageNetwork, attention_layers
from longllava_trt.plugins_trt.spec import OPERATORS

if TYPE_CHECKING:
    import onnx

__all__ = ["StageFacts", "gather_facts"]

_PRODUCTS = frozenset({"MatMul", "Gemm"})
"""Without convolutions: TensorRT gives the one there is, of CLIP's patches, a fourth channel in every call (2 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """Facts that budgets are computed from."""

    spec: StageSpec
    """From `engine_spec`."""
    profiles: Mapping[str, Mapping[str, ShapeRange]]
    dtype: str
    """Dtype that the stage computes in."""
    weight_shapes: Mapping[str, tuple[int, ...]]
    """All parameters of the stage by path."""
    product_weights: frozenset[str]
    """Inputs of the engine that matrix products and plugins take."""
    built_in_attention: Mapping[str, int]
    """Attention over a cache that is TensorRT's own: number of query heads, by node."""
    decomposed: bool
    """Whether TensorRT may take attention apart, as it must in float32."""

    @property
    def cache_shape(self) -> tuple[int, ...] | None:
        """Shape of each key and value cache, [batch, heads, capacity, head_dim], if there are any."""
        shapes = (t.shape for t in self.spec.inputs if t.name.endswith((".key", ".value")))
        return next((tuple(d for d in shape if isinstance(d, int)) for shape in shapes), None)


def gather_facts(
    trt: Any,
    parsed: StageNetwork,
    *,
    spec: StageSpec,
    profiles: Mapping[str, Mapping[str, ShapeRange]],
    dtype: str,
    weight_shapes: Mapping[str, tuple[int, ...]],
    inputs: Iterable[EngineWeight],
) -> StageFacts:
    """Gather what is known of a parsed stage; arguments as in `StageFacts`, inputs are the weights among the engine's."""
    attention = list(attention_layers(trt, parsed))
    names = {weight.name for weight in inputs}
    return StageFacts(
        spec=spec,
        profiles=profiles,
        dtype=dtype,
        weight_shapes=weight_shapes,
        product_weights=frozenset(names & _multiplied(parsed.model.graph)),
        built_in_attention={
            node.name: tuple(layer.get_input(0).shape)[1]
            for node, layer in attention
            if len(node.input) > LENGTHS_INPUT
        },
        decomposed=any(layer.decomposable for _, layer in attention),
    )


def _multiplied(graph: onnx.GraphProto) -> set[str]:
    """Return the values that products and our operators take, looking through transpositions."""
    ours = {(spec.domain, spec.op_type) for spec in OPERATORS}
    turned = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type in _PRODUCTS or (node.domain, node.op_type) in ours:
            taken.update(turned.get(name, name) for name in node.input[1:])
    return taken
