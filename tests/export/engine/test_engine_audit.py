"""The audit accepts what TensorRT makes of a stage, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from longllava_trt.core.engine_record import EngineWeight
from longllava_trt.core.errors import ExportError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.export.engine import graph
from longllava_trt.export.engine.audit import AuditReport, audit_network
from longllava_trt.export.engine.graph import fix_dims, rewrite_for_tensorrt
from longllava_trt.export.engine.log import make_logger
from longllava_trt.export.engine.network import StageNetwork, attention_layers, parse_network
from longllava_trt.export.engine.profiles import EngineLimits, engine_spec
from longllava_trt.export.engine.weights import externalize_weights
from longllava_trt.models.tensors import stored_paths
from longllava_trt.plugins_trt.registry import TensorRT

pytestmark = [pytest.mark.trt, pytest.mark.usefixtures("plugins")]

LIMITS = EngineLimits(max_context=64, chunk=16, vision_batch=3)


@dataclass
class Stage:
    """A stage on its way into TensorRT, to be spoilt on the way."""

    tensorrt: TensorRT
    model: onnx.ModelProto
    spec: StageSpec
    dtype: str
    paths: list[str]
    weights: tuple[EngineWeight, ...] = ()
    parsed: StageNetwork | None = None

    def parse(self) -> StageNetwork:
        self.log = make_logger(self.tensorrt)
        self.parsed = parse_network(self.tensorrt, self.model, self.log)
        return self.parsed

    def audit(self) -> AuditReport:
        return audit_network(
            self.tensorrt,
            self.parsed or self.parse(),
            spec=self.spec,
            inputs=self.weights,
            weights=self.paths,
            dtype=self.dtype,
        )

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == op_type]


def prepare(tensorrt: TensorRT, bundle: Path, name: str) -> Stage:
    manifest = Manifest.load(bundle)
    model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
    stored = [i.name for i in model.graph.initializer if i.external_data]
    stage = Stage(
        tensorrt=tensorrt,
        model=model,
        spec=engine_spec(manifest.stage(name).spec, LIMITS),
        dtype=manifest.dtype,
        paths=list(stored_paths(bundle, stored).values()),
    )
    stage.weights = externalize_weights(model.graph, manifest.weights)
    rewrite_for_tensorrt(model.graph)
    fix_dims(model.graph, LIMITS.fixed(name))
    return stage


@pytest.fixture
def decoder(tensorrt: TensorRT, bfloat16_bundle: Path) -> Stage:
    return prepare(tensorrt, bfloat16_bundle, "decoder")


@pytest.mark.parametrize(
    ("name", "layers", "attention"),
    [
        ("vision", {}, 3),
        ("projector", {}, 0),
        ("embed", {}, 0),
        (
            "decoder",
            {"CachedAttention": 1, "CausalConvWithState": 7, "MambaScan": 7, "SparseMoE": 4},
            0,
        ),
    ],
)
def test_every_stage_passes(
    name: str, layers: dict[str, int], attention: int, tensorrt: TensorRT, bfloat16_bundle: Path
) -> None:
    report = prepare(tensorrt, bfloat16_bundle, name).audit()
    assert report.plugins == layers
    assert list(report.attention.values()) == ["fused"] * attention


def test_float32_attention_may_be_taken_apart(tensorrt: TensorRT, tiny_bundle: Path) -> None:
    report = prepare(tensorrt, tiny_bundle, "vision").audit()
    assert set(report.attention.values()) == {"decomposable"}


def refuse(stage: Stage, message: str) -> None:
    words = f"{stage.spec.name}: the network TensorRT made.*{message}"
    with pytest.raises(ExportError, match=words):
        stage.audit()


def test_a_scan_spelt_out_in_the_graph_fails(decoder: Stage) -> None:
    """As if a function body had been put in the place of the node: the graph itself is at one with the network."""
    first = decoder.nodes("MambaScan")[0]
    taken, (y, state) = list(first.input), list(first.output)
    place = list(decoder.model.graph.node).index(first)
    del decoder.model.graph.node[place]
    for source, target in ((taken[0], y), (taken[10], state)):
        node = onnx.helper.make_node("Identity", [source], [target], target)
        decoder.model.graph.node.insert(place, node)
    refuse(decoder, "MambaScan must be 7 plugin layers, one for each parameter.*got 6")


def test_scans_that_are_left_in_place_fail(
    tensorrt: TensorRT, bfloat16_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "fuse_scans", lambda _: None)
    stage = prepare(tensorrt, bfloat16_bundle, "decoder")
    refuse(stage, r"MambaScan must be 7 plugin layers, one for each .*A_log', got 0")
    refuse(stage, "SelectiveScan must be no plugin layer of an engine")


def test_a_lost_operator_fails(decoder: Stage) -> None:
    decoder.parse()
    decoder.model.graph.node.append(onnx.helper.make_node("Relu", ["logits"], ["more"], "more"))
    refuse(decoder, "node Relu 'more' has no layer")


def test_another_plugin_in_the_place_of_a_node_fails(decoder: Stage) -> None:
    decoder.parse()
    node = decoder.nodes("CausalConvWithState")[0]
    node.op_type, node.domain = "SparseMoE", "longllava"
    refuse(decoder, "must be one plugin layer SparseMoE 1.*must be no plugin layer")


def test_an_attention_that_is_left_in_place_fails(
    tensorrt: TensorRT, bfloat16_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "attend_where_caches_lie", lambda _: None)
    stage = prepare(tensorrt, bfloat16_bundle, "decoder")
    refuse(stage, r"CachedAttention must be 1 plugin layers, one for each .*q_proj\.weight', got 0")
    refuse(stage, "must have 0 attention layers of TensorRT's.*got 1")


def hide_what_follows(trt: Any, attention: Any) -> None:
    attention.causal_kind = trt.CausalMaskKind.UPPER_LEFT


def allow_to_take_apart(trt: Any, attention: Any) -> None:
    attention.decomposable = True


def swap_key_and_value(trt: Any, attention: Any) -> None:
    key, value = attention.get_input(1), attention.get_input(2)
    attention.set_input(1, value)
    attention.set_input(2, key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (hide_what_follows, "must not be .*UPPER_LEFT"),
        (allow_to_take_apart, "must be fused"),
        (swap_key_and_value, "must take .*, got"),
    ],
)
def test_spoilt_attention_fails(
    spoil: Callable[[Any, Any], None], message: str, tensorrt: TensorRT, bfloat16_bundle: Path
) -> None:
    vision = prepare(tensorrt, bfloat16_bundle, "vision")
    trt = tensorrt.module
    (_, attention), *_ = attention_layers(trt, vision.parse())
    spoil(trt, attention)
    refuse(vision, message)


def test_a_cache_that_grows_elsewhere_fails(decoder: Stage) -> None:
    """Keys written to a copy: the graph's own output would no longer be the cache, updated in place."""
    node = decoder.nodes("TensorScatter")[0]
    node.output[0] = node.name = "elsewhere"
    for attention in decoder.nodes("CachedAttention"):
        attention.input[1] = "elsewhere"
    copy = onnx.helper.make_node("Identity", ["elsewhere"], ["present.4.key"], "present.4.key")
    decoder.model.graph.node.append(copy)
    refuse(decoder, r"'present\.4\.key' must be 'past_key_values\.4\.key', updated in place")


def test_a_float32_product_fails(decoder: Stage) -> None:
    product = decoder.nodes("MatMul")[0]
    place = list(decoder.model.graph.node).index(product)
    result = product.output[0]
    product.output[0] = product.name = "wide"
    float32, bfloat16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    back = onnx.helper.make_node("Cast", ["wide"], [result], result, to=bfloat16)
    decoder.model.graph.node.insert(place + 1, back)
    for index, name in enumerate(product.input):
        wider = onnx.helper.make_node("Cast", [name], [f"wide{index}"], f"wide{index}", to=float32)
        product.input[index] = f"wide{index}"
        decoder.model.graph.node.insert(place, wider)
    refuse(decoder, "MATRIX_MULTIPLY 'wide' must be in bfloat16, got float32")


def test_another_capacity_fails(decoder: Stage) -> None:
    past = next(t for t in decoder.spec.inputs if t.name.endswith(".key"))
    wider = replace(past, shape=(*past.shape[:2], 65, past.shape[3]))
    inputs = tuple(wider if t == past else t for t in decoder.spec.inputs)
    decoder.spec = replace(decoder.spec, inputs=inputs)
    refuse(decoder, r"input must be past_key_values\.4\.key \[1, 2, 65, 16\] bfloat16")


def test_a_missing_weight_fails(decoder: Stage) -> None:
    decoder.weights = decoder.weights[:-1]
    refuse(decoder, "must have 147 inputs, got 148")
