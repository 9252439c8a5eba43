"""Facts about a stage before TensorRT builds it; the finished engine is compared with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longllava_trt.core.engine_record import EngineWeight, ShapeRange
from longllava_trt.core.stage_spec import StageSpec
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
    decomposed: bool
    """Whether TensorRT may take its attention apart, as it must in float32."""
    rotations: int
    """Rotations of queries and of keys."""

    @property
    def cache_shape(self) -> tuple[int, ...] | None:
        """Shape of one sequence's keys or values, [heads, capacity, head_dim], if there are any."""
        shapes = (t.shape[1:] for t in self.spec.inputs if t.name.endswith((".key", ".value")))
        return next((tuple(int(dim) for dim in shape) for shape in shapes), None)


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
    names = {weight.name for weight in inputs}
    return StageFacts(
        spec=spec,
        profiles=profiles,
        dtype=dtype,
        weight_shapes=weight_shapes,
        product_weights=frozenset(names & _multiplied(parsed.model.graph)),
        decomposed=any(layer.decomposable for _, layer in attention_layers(trt, parsed)),
        rotations=sum(node.op_type == "RotaryEmbedding" for node in parsed.model.graph.node),
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
