"""Weights become inputs that are what the graph made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from longllava_trt.core.engine_record import EngineWeight
from longllava_trt.core.errors import ExportError
from longllava_trt.core.manifest import Manifest, WeightRecord
from longllava_trt.export.engine.weights import externalize_weights


def read_graph(bundle: Path, stage: str) -> onnx.GraphProto:
    return onnx.load(bundle / f"{stage}.onnx", load_external_data=False).graph


def assemble(bundle: Path, weight: EngineWeight) -> Any:
    """Read a weight as a loader would: its parts one after another, each cast."""
    parts = []
    for part in weight.parts:
        raw = (bundle / part.file).read_bytes()[part.offset : part.offset + part.nbytes]
        parts.append(np.frombuffer(raw, part.dtype).astype(weight.dtype))
    return np.concatenate(parts).reshape(weight.shape)


def evaluate(bundle: Path, graph: onnx.GraphProto, value: str) -> Any:
    """Compute a value of the original graph from its nodes, in NumPy."""
    for init in graph.initializer:
        if init.name == value and not init.external_data:
            return numpy_helper.to_array(init)
        if init.name == value:
            where = {e.key: e.value for e in init.external_data}
            begin, size = int(where["offset"]), int(where["length"])
            raw = (bundle / where["location"]).read_bytes()[begin : begin + size]
            dtype = helper.tensor_dtype_to_np_dtype(init.data_type)
            return np.frombuffer(raw, dtype).reshape(tuple(init.dims))
    node = next(n for n in graph.node if value in n.output)
    taken = [evaluate(bundle, graph, name) for name in node.input]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast":
        return taken[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if node.op_type == "Unsqueeze":
        return np.expand_dims(taken[0], tuple(taken[1]))
    assert node.op_type == "Concat"
    return np.concatenate(taken, axis=attributes["axis"])


def experts(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "SparseMoE")


@pytest.mark.parametrize("place", [2, 3], ids=["gate_up", "down"])
def test_stacked_experts_are_their_parts_in_a_row(place: int, bfloat16_bundle: Path) -> None:
    graph = read_graph(bfloat16_bundle, "decoder")
    want = evaluate(bfloat16_bundle, graph, experts(graph).input[place])
    cut = {w.name: w for w in externalize_weights(graph, Manifest.load(bfloat16_bundle).weights)}
    name = experts(graph).input[place]
    assert name == f"model.layers.1.moe.experts.{['gate_up', 'down'][place - 2]}"
    got = assemble(bfloat16_bundle, cut[name])
    assert got.dtype == np.dtype("bfloat16")
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))


@pytest.mark.parametrize("stage", ["vision", "projector", "embed", "decoder"])
def test_nothing_of_the_weights_stays_in_the_graph(stage: str, bfloat16_bundle: Path) -> None:
    graph = read_graph(bfloat16_bundle, stage)
    names = {init.name for init in graph.initializer if init.external_data}
    inputs = len(graph.input)
    cut = externalize_weights(graph, Manifest.load(bfloat16_bundle).weights)
    assert not [init.name for init in graph.initializer if init.external_data]
    assert {part.name for weight in cut for part in weight.parts} == names
    assert [value.name for value in graph.input[inputs:]] == [weight.name for weight in cut]
    assert not [n.name for n in graph.node if n.op_type == "Cast" and n.input[0] in names]
    given = {value.name for value in graph.input} | {init.name for init in graph.initializer}
    given |= {name for node in graph.node for name in node.output}
    assert {name for node in graph.node for name in node.input if name} <= given


def test_a_bundle_of_the_stored_dtype_has_the_same_inputs(
    tiny_bundle: Path, bfloat16_bundle: Path
) -> None:
    plain, cast = (
        externalize_weights(read_graph(bundle, "decoder"), Manifest.load(bundle).weights)
        for bundle in (tiny_bundle, bfloat16_bundle)
    )
    assert [(w.name, w.shape, w.parts) for w in plain] == [(w.name, w.shape, w.parts) for w in cast]
    assert {w.dtype for w in plain} == {"float32"}
    assert {w.dtype for w in cast} == {"bfloat16"}


def graph_of(*nodes: onnx.NodeProto, dtype: int = TensorProto.FLOAT) -> onnx.GraphProto:
    """A graph over `x` with weights `a.w` and `b.w` of shape [2, 3] in a file."""
    weights = [TensorProto(name=n, data_type=dtype, dims=[2, 3]) for n in ("a.w", "b.w")]
    for weight in weights:
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "weights/f.safetensors"
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "stage", [x], [y], [*weights, axes])


def records(dtype: str = "float32") -> dict[str, WeightRecord]:
    return {
        name: WeightRecord(
            file="weights/f.safetensors",
            offset=24 * place,
            nbytes=24,
            shape=(2, 3),
            dtype=dtype,
            transform="none",
        )
        for place, name in enumerate(("a.w", "b.w"))
    }


def test_a_join_along_another_axis_stays_in_the_graph() -> None:
    join = helper.make_node("Concat", ["a.w", "b.w"], ["joined"], axis=1)
    graph = graph_of(join, helper.make_node("MatMul", ["x", "joined"], ["y"]))
    assert [w.name for w in externalize_weights(graph, records())] == ["a.w", "b.w"]
    assert [node.op_type for node in graph.node] == ["Concat", "MatMul"]


def test_a_second_cast_stays_in_the_graph() -> None:
    casts = [
        helper.make_node("Cast", ["a.w"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["whole"], to=TensorProto.FLOAT),
    ]
    graph = graph_of(*casts, helper.make_node("Add", ["x", "whole"], ["y"]))
    (weight,) = externalize_weights(graph, records())
    assert (weight.name, weight.dtype) == ("a.w", "float16")
    assert [node.op_type for node in graph.node] == ["Cast", "Add"]


def test_a_byte_of_two_codes_is_given_as_int8() -> None:
    graph = graph_of(helper.make_node("Any", ["x", "a.w"], ["y"]), dtype=TensorProto.UINT8)
    (weight,) = externalize_weights(graph, records("uint8"))
    assert weight.dtype == weight.parts[0].dtype == "int8"
    assert graph.input[1].type.tensor_type.elem_type == TensorProto.INT8


def test_a_weight_used_in_two_forms_is_refused() -> None:
    cast = helper.make_node("Cast", ["a.w"], ["half"], to=TensorProto.FLOAT16)
    graph = graph_of(cast, helper.make_node("Any", ["half", "a.w"], ["y"]))
    with pytest.raises(ExportError, match=r"one form, got a\.w"):
        externalize_weights(graph, records())


def test_a_weight_the_manifest_does_not_know_is_refused() -> None:
    graph = graph_of(helper.make_node("Add", ["x", "b.w"], ["y"]))
    known = records()
    del known["b.w"]
    with pytest.raises(ExportError, match=r"'b\.w' is not in the manifest's weight map"):
        externalize_weights(graph, known)
