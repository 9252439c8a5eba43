"""A product that is halved becomes two, each with its half of the weight's bytes, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from longllava_trt.core.engine_record import EngineWeight
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.engine.graph import convolve_channels_last
from longllava_trt.export.engine.products import split_products
from longllava_trt.export.engine.weights import externalize_weights
from tests.export.engine.test_engine_weights import assemble, read_graph

NAME = "model.layers.0.mamba.in_proj.weight"


@pytest.fixture
def graph(bfloat16_bundle: Path) -> onnx.GraphProto:
    return read_graph(bfloat16_bundle, "decoder")


@pytest.fixture
def cut(graph: onnx.GraphProto, bfloat16_bundle: Path) -> tuple[EngineWeight, ...]:
    weights = externalize_weights(graph, Manifest.load(bfloat16_bundle).weights)
    convolve_channels_last(graph)
    return weights


def test_halves_are_the_weight_in_a_row(
    graph: onnx.GraphProto, cut: tuple[EngineWeight, ...], bfloat16_bundle: Path
) -> None:
    (whole,) = (weight for weight in cut if weight.name == NAME)
    split = split_products(graph, cut)
    halves = [weight for weight in split if weight.name.startswith(NAME)]
    assert [weight.name for weight in halves] == [f"{NAME}.0", f"{NAME}.1"]
    joined = np.concatenate([assemble(bfloat16_bundle, half) for half in halves])
    want = assemble(bfloat16_bundle, whole)
    np.testing.assert_array_equal(joined.view(np.uint16), want.view(np.uint16))
    assert len(split) == len(cut) + 7, "one more in each Mamba layer"
    inputs = [value.name for value in graph.input]
    assert inputs[-len(split) :] == [weight.name for weight in split], "in the engine's order"
    assert not [n.name for n in graph.node if n.op_type == "Split" and len(n.output) == 2]


@pytest.mark.parametrize("spoil", ["another user of a half", "an output", "another product"])
def test_a_result_that_others_take_stays_whole(
    spoil: str, graph: onnx.GraphProto, cut: tuple[EngineWeight, ...]
) -> None:
    split = next(node for node in graph.node if node.op_type == "Split")
    half = split.output[0]
    turned = next(n for n in graph.node if n.op_type == "Transpose" and n.input[0] == NAME)
    if spoil == "another user of a half":
        graph.node.append(onnx.helper.make_node("Identity", [half], ["again"]))
    elif spoil == "an output":
        graph.output.append(
            onnx.helper.make_tensor_value_info(half, onnx.TensorProto.BFLOAT16, None)
        )
    else:
        graph.node.append(
            onnx.helper.make_node("MatMul", ["inputs_embeds", turned.output[0]], ["y"])
        )
    assert NAME in {weight.name for weight in split_products(graph, cut)}
    assert split in list(graph.node)


def test_embedded_weights_are_left(graph: onnx.GraphProto) -> None:
    nodes = len(graph.node)
    assert split_products(graph, ()) == ()
    assert len(graph.node) == nodes
