"""Every stage traces to valid ONNX with exactly its contract's names, shapes and dtypes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from longllava_trt.core.errors import ExportError
from longllava_trt.core.stage_spec import STAGES
from longllava_trt.export import trace
from longllava_trt.export.bundle import _with_bodies
from longllava_trt.export.check import check_stage
from longllava_trt.export.trace import trace_stage
from longllava_trt.models.contracts import layer_output_names, stage_specs
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.llava_jamba.weights import VISION_PREFIX
from longllava_trt.models.registry import find_preset
from tests.export.stored_traces import stored_in

TINY = PRESETS["tiny"]


def traced(stage: str) -> ir.Model:
    return trace_stage(TINY, stage_specs(TINY, "float32")[stage], dtype="float32")


@pytest.fixture(scope="module")
def decoder(traces: Path) -> onnx.ModelProto:
    """The traced decoder with its function bodies; its weights are inputs still."""
    model = stored_in(traces)(TINY, stage_specs(TINY, "float32")["decoder"], dtype="float32")
    return _with_bodies(ir.to_proto(model), "none")


def bound(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose weights are external initializers, as in a bundle."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep = len(stage_specs(TINY, "float32")["decoder"].inputs)
    for value in list(copy.graph.input)[keep:]:
        init = copy.graph.initializer.add(name=value.name, data_type=onnx.TensorProto.FLOAT)
        init.dims.extend(d.dim_value for d in value.type.tensor_type.shape.dim)
        init.data_location = onnx.TensorProto.EXTERNAL
        init.external_data.add(key="location", value="weights/none.safetensors")
        copy.graph.input.remove(value)
    return copy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_stage_has_the_contracts_inputs_and_outputs(stage: str, dtype: str, traces: Path) -> None:
    spec = stage_specs(TINY, dtype)[stage]
    graph = stored_in(traces)(TINY, spec, dtype=dtype).graph
    names = [value.name for value in graph.inputs]
    assert names[: len(spec.inputs)] == [t.name for t in spec.inputs]
    assert [value.name for value in graph.outputs] == [t.name for t in spec.outputs]
    for value, want in zip(graph.outputs, spec.outputs, strict=True):
        assert value.shape is not None
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
        assert shape == want.shape
    assert all(str(name).startswith(("model.", "lm_head.")) for name in names[len(spec.inputs) :])


def test_layer_outputs_are_named_values_of_the_graph(decoder: onnx.ModelProto) -> None:
    produced = {name for node in decoder.graph.node for name in node.output}
    assert set(layer_output_names("decoder", TINY)) <= produced


def test_vision_leaves_out_what_follows_the_penultimate_layer() -> None:
    names = {value.name for value in traced("vision").graph.inputs}
    last = TINY.require_vision().num_layers - 1
    assert not any(f"{VISION_PREFIX}encoder.layers.{last}." in str(name) for name in names)
    assert not any("post_layernorm" in str(name) for name in names)
    assert any(f"{VISION_PREFIX}encoder.layers.{last - 1}." in str(name) for name in names)


def test_custom_nodes_carry_function_bodies(decoder: onnx.ModelProto) -> None:
    custom = {n.op_type for n in decoder.graph.node if n.domain == "longllava"}
    assert custom == {"SelectiveScan", "SparseMoE"}
    assert custom == {f.name for f in decoder.functions}


def test_graph_says_nothing_about_the_machine(decoder: onnx.ModelProto) -> None:
    data = decoder.SerializeToString()
    assert not any(word in data for word in (b".py", b"site-packages", b"/home", b"File "))


def test_an_operator_that_torch_wrote_for_an_older_opset_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rotary = find_preset("llava-1.5-tiny")
    monkeypatch.setattr(trace, "_SAME_IN_BOTH", trace._SAME_IN_BOTH - {"Range"})
    with pytest.raises(ExportError, match="decoder: traced Range, whose meaning between opsets"):
        trace_stage(rotary, stage_specs(rotary, "float32")["decoder"], dtype="float32")


def test_a_dense_model_has_no_mixture(traces: Path) -> None:
    dense = PRESETS["tiny-dense"]
    model = stored_in(traces)(dense, stage_specs(dense, "float32")["decoder"], dtype="float32")
    assert "SparseMoE" not in {node.op_type for node in model.graph}


def test_an_operator_nobody_reviewed_stops_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_SAME_IN_BOTH", trace._SAME_IN_BOTH - {"Reshape"})
    with pytest.raises(ExportError, match=r"decoder: traced .*Reshape.*has not been reviewed"):
        traced("decoder")


def test_checker_accepts_the_stage(decoder: onnx.ModelProto) -> None:
    check_stage(bound(decoder), stage_specs(TINY, "float32")["decoder"])


def test_checker_refuses_another_name_dtype_or_count(decoder: onnx.ModelProto) -> None:
    spec = stage_specs(TINY, "float32")["decoder"]
    renamed = bound(decoder)
    renamed.graph.output[0].name = "scores"
    with pytest.raises(ExportError, match=r"output must be logits .* got scores"):
        check_stage(renamed, spec)
    retyped = bound(decoder)
    retyped.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32
    with pytest.raises(ExportError, match=r"must be past_len \[batch\] int64, got .* int32"):
        check_stage(retyped, spec)
    shortened = bound(decoder)
    del shortened.graph.output[-1]
    with pytest.raises(ExportError, match="must have 17 outputs, got 16"):
        check_stage(shortened, spec)


def test_checker_refuses_a_node_without_a_body(decoder: onnx.ModelProto) -> None:
    bodiless = bound(decoder)
    del bodiless.functions[:]
    bodiless.opset_import.remove(next(o for o in bodiless.opset_import if o.domain == "longllava"))
    with pytest.raises(ExportError, match="checker refuses"):
        check_stage(bodiless, stage_specs(TINY, "float32")["decoder"])
