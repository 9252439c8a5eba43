"""Rewrites for TensorRT change what it cannot take, and not what is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from longllava_trt.core.errors import ExportError
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.engine.cached_attention import attend_where_caches_lie
from longllava_trt.export.engine.graph import (
    convolve_channels_last,
    fix_dims,
    rewrite_for_tensorrt,
)
from longllava_trt.export.engine.mamba_scan import fuse_scans
from tests.export.engine.engine_bodies import add_engine_bodies


def run(model: onnx.ModelProto, folder: Path, feed: dict[str, Any]) -> list[Any]:
    # beside the bundle's weights, for the time of the call
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, feed)
    return outputs


def decoder_feed(bundle: Path, *, seq_len: int, capacity: int, past: int) -> dict[str, Any]:
    sizes = {"batch": 1, "seq_len": seq_len, "capacity": capacity}
    rng = np.random.default_rng(3)
    feed: dict[str, Any] = {}
    for tensor in Manifest.load(bundle).stage("decoder").spec.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
        feed[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    feed["past_len"] = np.array([past], np.int64)
    return feed


@pytest.mark.parametrize(("seq_len", "past"), [(5, 0), (3, 4), (1, 8)])
def test_the_rewritten_decoder_computes_the_same(
    seq_len: int, past: int, tiny_bundle: Path
) -> None:
    model = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False)
    feed = decoder_feed(tiny_bundle, seq_len=seq_len, capacity=9, past=past)
    want = run(model, tiny_bundle, feed)
    rewrite_for_tensorrt(model.graph)
    assert not {"Attention", "SelectiveScan"} & {node.op_type for node in model.graph.node}
    add_engine_bodies(model)
    fix_dims(model.graph, {"batch": 1, "capacity": 9})
    got = run(model, tiny_bundle, feed)
    assert got[0].shape == want[0].shape
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_queries_take_the_whole_scale(bfloat16_bundle: Path) -> None:
    graph = onnx.load(bfloat16_bundle / "vision.onnx", load_external_data=False).graph
    rewrite_for_tensorrt(graph)
    attention = next(node for node in graph.node if node.op_type == "Attention")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in attention.attribute}
    assert attributes["scale"] == 1.0
    made = {name: node for node in graph.node for name in node.output}
    chain = [made[attention.input[0]]]
    while chain[-1].op_type != "Transpose":
        chain.append(made[chain[-1].input[0]])
    assert [node.op_type for node in chain] == ["Cast", "Mul", "Cast", "Transpose"]
    factor = next(i for i in graph.initializer if i.name == chain[1].input[1])
    assert onnx.numpy_helper.to_array(factor) == np.float32(16**-0.5)


def test_names_are_of_one_node_each(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    for node in graph.node:
        node.name = ""
    rewrite_for_tensorrt(graph)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_fixed_dims_are_numbers(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    fix_dims(graph, {"batch": 1, "capacity": 77})
    dims = {
        dim.dim_param
        for value in (*graph.input, *graph.output)
        for dim in value.type.tensor_type.shape.dim
        if dim.dim_param
    }
    assert dims == {"seq_len"}
    assert not graph.value_info


def test_a_graph_without_shapes_is_refused(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "vision.onnx", load_external_data=False).graph
    del graph.value_info[:]
    with pytest.raises(ExportError, match="has no shape; export the bundle again"):
        rewrite_for_tensorrt(graph)


def test_convolutions_lose_their_transposes(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    convs = [node for node in graph.node if node.op_type == "CausalConvWithState"]
    # past the transposition, and past the split
    wanted = [made[made[node.input[0]].input[0]].input[0] for node in convs]
    users = {name: node for node in graph.node for name in node.input}
    results = [users[node.output[0]].output[0] for node in convs]
    before = len(graph.node)
    convolve_channels_last(graph)
    assert [node.input[0] for node in convs] == wanted
    assert [node.output[0] for node in convs] == results
    assert {onnx.helper.get_node_attr_value(node, "channels_last") for node in convs} == {1}
    assert len(graph.node) == before - 2 * len(convs)


def test_a_second_half_is_not_convolved_as_the_first(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    split = next(node for node in graph.node if node.op_type == "Split")
    conv = next(node for node in graph.node if node.op_type == "CausalConvWithState")
    turn = next(node for node in graph.node if conv.input[0] in node.output)
    turn.input[0] = split.output[1]
    convolve_channels_last(graph)
    assert conv.input[0] == split.output[1]


@pytest.mark.parametrize("spoil", ["width", "second user"])
def test_convolutions_that_need_their_transposes_keep_them(spoil: str, tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    conv = next(node for node in graph.node if node.op_type == "CausalConvWithState")
    if spoil == "width":
        state = next(v for v in graph.input if v.name == conv.input[3])
        state.type.tensor_type.shape.dim[1].dim_value = 40
    else:
        graph.node.append(onnx.helper.make_node("Identity", [conv.output[0]], ["again"]))
    taken = list(conv.input)
    convolve_channels_last(graph)
    assert list(conv.input) == taken


def attention_of(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "Attention")


def test_attention_takes_queries_as_the_projection_has_them(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    users = {name: node for node in graph.node for name in node.input}
    old = attention_of(graph)
    queries, caches = made[old.input[0]].input[0], list(old.input[1:3])
    results = users[old.output[0]].output[0]
    attend_where_caches_lie(graph)
    (new,) = (node for node in graph.node if node.op_type == "CachedAttention")
    assert new.domain == "longllava"
    assert list(new.input) == [queries, *caches, "past_len.int32"]
    assert list(new.output) == [results]
    taken = {name for node in graph.node for name in node.input}
    taken |= {value.name for value in graph.output}
    assert all(taken & set(node.output) for node in graph.node), "nothing is left over"


def add_mask(graph: onnx.GraphProto) -> None:
    attention_of(graph).input[3] = "mask"


def ask_for_a_window(graph: onnx.GraphProto) -> None:
    attention_of(graph).attribute.append(onnx.helper.make_attribute("softcap", 5.0))


def look_ahead(graph: onnx.GraphProto) -> None:
    for attribute in attention_of(graph).attribute:
        attribute.i = 0 if attribute.name == "is_causal" else attribute.i


def write_elsewhere(graph: onnx.GraphProto) -> None:
    written = next(node for node in graph.node if node.op_type == "TensorScatter")
    written.input[2] = "elsewhere"


def take_other_lengths(graph: onnx.GraphProto) -> None:
    attention_of(graph).input[6] = "past_len"


def lose_a_transposition(graph: onnx.GraphProto) -> None:
    queries = attention_of(graph).input[0]
    turn = next(node for node in graph.node if queries in node.output)
    turn.attribute[0].ints[:] = [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add_mask, "no mask and no past can be given"),
        (ask_for_a_window, "attributes must be .*got .*softcap"),
        (look_ahead, "attributes must be .*got .*'is_causal': 0"),
        (write_elsewhere, "written by TensorScatter, at the same positions"),
        (take_other_lengths, "lengths must be those positions and the new ones"),
        (lose_a_transposition, "queries and results must be transposed"),
    ],
)
def test_another_attention_over_a_cache_is_refused(
    spoil: Callable[[onnx.GraphProto], None], message: str, tiny_bundle: Path
) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    spoil(graph)
    with pytest.raises(ExportError, match=f"cannot be CachedAttention: .*{message}"):
        rewrite_for_tensorrt(graph)


def scan_of(graph: onnx.GraphProto) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == "SelectiveScan")


def test_scans_take_what_the_products_give(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    old = onnx.NodeProto()
    old.CopyFrom(scan_of(graph))
    norms = [made[made[old.input[1]].input[0]], made[old.input[3]], made[old.input[4]]]
    projected = made[norms[0].input[0]].input[0]
    convolve_channels_last(graph)
    fuse_scans(graph)
    new = next(node for node in graph.node if node.op_type == "MambaScan")
    prefix = "model.layers.0.mamba"
    assert list(new.input) == [
        old.input[0],
        projected,
        *(f"{prefix}.{name}_layernorm.weight" for name in ("dt", "B", "C")),
        f"{prefix}.dt_proj.weight",
        f"{prefix}.dt_proj.bias",
        f"{prefix}.A_log",
        f"{prefix}.D",
        made[old.input[6]].input[0],
        "past_key_values.0.recurrent_state",
    ]
    assert list(new.output) == list(old.output)
    assert onnx.helper.get_node_attr_value(new, "eps") == np.float32(1e-6)
    kinds = {node.op_type for node in graph.node}
    assert not kinds & {"SelectiveScan", "Split"}, "nothing is taken apart any more"
    assert sum(node.op_type == "MambaScan" for node in graph.node) == 7


def swap_b_and_c(graph: onnx.GraphProto) -> None:
    scan = scan_of(graph)
    scan.input[3], scan.input[4] = scan.input[4], scan.input[3]


def norm_nothing(graph: onnx.GraphProto) -> None:
    scan = scan_of(graph)
    norm = next(node for node in graph.node if scan.input[4] in node.output)
    scan.input[4] = norm.input[0]


def take_another_epsilon(graph: onnx.GraphProto) -> None:
    name = scan_of(graph).input[3]
    norm = next(node for node in graph.node if name in node.output)
    next(a for a in norm.attribute if a.name == "epsilon").f = 0.5


def gate_with_the_first_half(graph: onnx.GraphProto) -> None:
    scan = scan_of(graph)
    split = next(node for node in graph.node if scan.input[6] in node.output)
    scan.input[6] = split.output[0]


def project_with_the_weight_as_stored(graph: onnx.GraphProto) -> None:
    name = scan_of(graph).input[1]
    product = next(node for node in graph.node if name in node.output)
    product.input[1] = "model.layers.0.mamba.dt_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap_b_and_c, "must take the parts of one tensor in a row"),
        (norm_nothing, "must be results of RMSNormalization"),
        (take_another_epsilon, "with one epsilon, got"),
        (gate_with_the_first_half, "must be the second half of a tensor"),
        (project_with_the_weight_as_stored, "must be a product with a transposed weight"),
    ],
)
def test_another_mixer_is_refused(
    spoil: Callable[[onnx.GraphProto], None], message: str, tiny_bundle: Path
) -> None:
    graph = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False).graph
    spoil(graph)
    with pytest.raises(ExportError, match=f"decoder: scan '.*' cannot be MambaScan: .*{message}"):
        rewrite_for_tensorrt(graph)
