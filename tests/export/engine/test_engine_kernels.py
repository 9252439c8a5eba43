"""TensorRT's choices are read, recorded and compared with budgets; each budget finds its fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from longllava_trt.core.engine_record import EngineRecord
from longllava_trt.core.errors import ExportError
from longllava_trt.core.kernel_record import BudgetExcess, Kernel, KernelTensor, ProfileKernels
from longllava_trt.export.engine import graph, network, stage
from longllava_trt.export.engine.budgets import check_budgets
from longllava_trt.export.engine.graph import convolve_channels_last
from longllava_trt.export.engine.kernels import read_kernels, tells_kernels
from longllava_trt.export.engine.log import make_logger
from longllava_trt.export.engine.profiles import EngineLimits
from longllava_trt.export.engine.stage import BuiltStage, build_stage
from longllava_trt.export.engine.stage_facts import StageFacts
from longllava_trt.plugins_trt.registry import TensorRT

LIMITS = EngineLimits(max_context=97, chunk=16, vision_batch=3)
SAID = """\
Constructing optimization profile number 0 [1/2].
Max Scratch Memory: 1000 bytes
Total Activation Memory: 1512 bytes
Constructing optimization profile number 1 [2/2].
Max Scratch Memory: 300 bytes
Total Activation Memory: 812 bytes
Layers:
Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: (Unnamed Layer* 485) [Shuffle]_output, Location: Device, Dimensions: [1], Datatype: Int64, Format: Format not available due to dynamic shapes }], ParameterType: ShapeH2D, TacticValue: 0x0000000000000000, StreamId: 0, Metadata: 
Name: __mye32_0_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata: 
Name: __myl_Tran_myl1_9, LayerType: kgen, Inputs: [ { Name: a.weight, Dimensions: [20,5], Strides: [5,1], StrideOrder: [1,0], Datatype: BFloat16, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: val_20_out.1_myl1, Dimensions: [5,20], Strides: [20,1], StrideOrder: [1,0], Datatype: BFloat16, Format: (Linear) Row major linear format }], TacticName: __myl_Tran_0x2efa, StreamId: 1, Metadata: [ONNX Layer: val_20]
Name: __mye33_0_myl3_0, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata: 
Name: __myl_Repl_myl3_1, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: __lte_myl3, Dimensions: [1,17], Strides: [17,1], StrideOrder: [1,0], Datatype: Bool, Format: (Linear) Row major linear format }], TacticName: __myl_Repl_0x1, StreamId: 1, Metadata: 
Name: linear [profile 1]_U94_myl3_13, LayerType: gemm, Inputs: [ { Name: x [profile 1], Dimensions: [1,-1,5], Strides: [-1,5,1], StrideOrder: [2,1,0], Datatype: BFloat16, Format: (Linear) Row major linear format }, { Name: a.weight [profile 1], Dimensions: [1,5,20], Strides: [100,1,5], StrideOrder: [2,0,1], Datatype: BFloat16, Format: (Linear) Row major linear format }], Constants: [ { Name: alpha_myl3, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [1,-1,20], Strides: [-1,20,1], StrideOrder: [2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 1, Metadata: [ONNX Layer: linear][ONNX Layer: add]
"""  # noqa: W291 - as TensorRT-RTX 1.7 writes it
PROFILES = ("chunk", "decode")


def read_text(text: str) -> Mapping[str, ProfileKernels]:
    return read_kernels(filter(tells_kernels, text.splitlines()), PROFILES, stage="decoder")


def test_kernels_are_read_by_profile() -> None:
    found = read_text(SAID)
    assert {name: (p.scratch_bytes, p.activation_bytes) for name, p in found.items()} == {
        "chunk": (1000, 1512),
        "decode": (300, 812),
    }
    (turn,) = found["chunk"].kernels
    assert turn == Kernel(
        name="__myl_Tran_myl1_9",
        kind="kgen",
        inputs=(KernelTensor("a.weight", "bfloat16", (20, 5), (5, 1)),),
        outputs=(KernelTensor("val_20_out.1_myl1", "bfloat16", (5, 20), (20, 1)),),
        tactic="__myl_Tran_0x2efa",
        nodes=("val_20",),
    )
    filled, product = found["decode"].kernels
    assert filled.name == "__myl_Repl_myl3_1", "a kernel that names no profile goes by its program"
    assert (product.name, product.tactic) == ("linear_U94_myl3_13", "__myelin_CASK_STUB")
    assert product.inputs[1] == KernelTensor("a.weight", "bfloat16", (1, 5, 20), (100, 1, 5))
    assert [t.dtype for t in product.outputs] == ["float32"]
    assert product.nodes == ("linear", "add")


@pytest.mark.parametrize("lost", ["Name: __myl_Tran", "Max Scratch Memory: 300"])
def test_a_list_that_is_not_whole_is_refused(lost: str) -> None:
    text = "\n".join(line for line in SAID.splitlines() if not line.startswith(lost))
    with pytest.raises(ExportError, match="decoder: TensorRT must list the kernels of profile"):
        read_text(text)


def test_kernels_survive_json() -> None:
    excess = BudgetExcess(budget="launches", excess="2 of 1", reason="because", cure="a plugin")
    for found in read_text(SAID).values():
        known = replace(found, excesses=(excess,))
        assert ProfileKernels.from_json(json.loads(json.dumps(known.to_json()))) == known


Build = Callable[[str], BuiltStage]


@pytest.fixture
def build(tensorrt: TensorRT, plugins: None, bfloat16_bundle: Path) -> Build:
    def build_it(name: str) -> BuiltStage:
        return build_stage(
            tensorrt,
            bfloat16_bundle,
            name,
            target="sm80",
            weights="external",
            limits=LIMITS,
            tell=lambda _: None,
        )

    return build_it


@pytest.mark.trt
def test_engines_leave_all_memory_to_the_user(tensorrt: TensorRT) -> None:
    """Else a launch might allocate, and could not be part of a CUDA graph."""
    if tensorrt.flavour != "tensorrt-rtx":
        pytest.skip("the flag of TensorRT-RTX is unproven: the full TensorRT is installed instead")
    trt = tensorrt.module
    builder = trt.Builder(make_logger(tensorrt))
    parsed: Any = SimpleNamespace(builder=builder)
    config = stage._builder_config(tensorrt, parsed, "sm80")
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


@pytest.mark.trt
@pytest.mark.parametrize("name", ["vision", "projector", "embed", "decoder"])
def test_stages_are_within_every_budget(name: str, build: Build) -> None:
    for found in build(name).kernels.values():
        assert found.kernels
        assert found.excesses == ()


@pytest.mark.trt
@pytest.mark.parametrize("sequences", [1, 16])
def test_the_decoder_reads_weights_and_caches_where_they_lie(
    sequences: int, tensorrt: TensorRT, plugins: None, bfloat16_bundle: Path
) -> None:
    built = build_stage(
        tensorrt,
        bfloat16_bundle,
        "decoder",
        target="sm80",
        weights="external",
        limits=replace(LIMITS, sequences=sequences),
        tell=lambda _: None,
    )
    weights = {weight.name for weight in built.weights if len(weight.shape) == 2}
    assert "model.layers.0.mamba.in_proj.weight" in weights
    for name, found in built.kernels.items():
        readers = {t.name: k.kind for k in found.kernels for t in k.inputs if t.name in weights}
        assert set(readers) == weights, name
        # at this size TensorRT multiplies the one row of the head in a kernel with the norm before it
        assert readers.pop("lm_head.weight") in {"gemm", "runtime_fusion", "kgen"}
        assert set(readers.values()) <= {"gemm", "runtime_fusion", "custom_layer"}
        assert not [
            k.name for k in found.kernels if k.name.startswith(("__myl_Slic_", "__myl_Tran_"))
        ]
        # one kernel writes both caches, and our operator alone reads them
        caches = {"present.4.key", "present.4.value"}
        near = [k for k in found.kernels if caches & {t.name for t in (*k.inputs, *k.outputs)}]
        assert [k.kind for k in near] == ["kgen", "custom_layer"], name
        queries = near[1].inputs[0]
        assert queries.shape[2:] == (4, 16), "as the projection has them"


@pytest.mark.trt
def test_an_attention_that_is_left_in_place_exceeds_the_budgets(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had the audit let it pass: TensorRT would write the caches again, for every head."""
    monkeypatch.setattr(graph, "attend_where_caches_lie", lambda _: None)
    monkeypatch.setattr(stage, "audit_network", lambda *_, **__: None)
    with pytest.raises(ExportError) as caught:
        build("decoder")
    for problem in (
        r"must write nothing of the cache's size, got .* \[4, 97, 16\]",
        r"launches must be at most \d+ kernels",
    ):
        assert caught.match(problem)


@pytest.mark.trt
def test_weights_inside_the_engine_are_within_the_same_budgets(
    tensorrt: TensorRT, plugins: None, bfloat16_bundle: Path
) -> None:
    built = build_stage(
        tensorrt,
        bfloat16_bundle,
        "decoder",
        target="sm80",
        weights="embedded",
        limits=LIMITS,
        tell=lambda _: None,
    )
    assert set(built.kernels) == {"chunk", "decode"}


def no_change(_: Any, parsed: Any) -> None:
    """Leave the network as it was parsed."""


@pytest.mark.trt
def test_a_transposed_weight_is_noticed(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network as the parser makes it: all engines built before were so."""
    monkeypatch.setattr(network, "_multiply_by_weights_as_stored", no_change)
    with pytest.raises(ExportError) as caught:
        build("decoder")
    message = str(caught.value)
    for profile in PROFILES:
        assert (
            f"profile '{profile}': weight 'model.layers.0.mamba.in_proj.weight' must be read by products and "
            "plugins alone, got kgen '__myl_Tran_"
        ) in message


def leave_splits(graph: onnx.GraphProto) -> None:
    """Let convolutions read a half that TensorRT has to take out."""
    for node in list(graph.node):
        if node.op_type == "CausalConvWithState":
            name = f"{node.input[0]}.half"
            halves = [name, f"{node.input[0]}.other"]
            split = onnx.helper.make_node(
                "Split", [node.input[0]], halves, name, axis=2, num_outputs=2
            )
            graph.node.insert(list(graph.node).index(node), split)
            node.input[0] = name


@pytest.mark.trt
def test_slices_of_a_joint_result_are_noticed(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convolve_halves(graph: onnx.GraphProto) -> None:
        convolve_channels_last(graph)
        leave_splits(graph)

    monkeypatch.setattr(stage, "convolve_channels_last", convolve_halves)
    with pytest.raises(
        ExportError, match=r"profile 'decode': launches must be at most \d+ kernels"
    ):
        build("decoder")


@pytest.mark.trt
def test_scans_that_are_left_in_place_exceed_the_budget(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had the audit let it pass: five kernels more a layer, norms, products and slices."""
    monkeypatch.setattr(graph, "fuse_scans", lambda _: None)
    monkeypatch.setattr(stage, "audit_network", lambda *_, **__: None)
    with pytest.raises(
        ExportError, match=r"profile 'decode': launches must be at most \d+ kernels"
    ):
        build("decoder")


@pytest.mark.trt
def test_a_mamba_layer_is_six_kernels(build: Build) -> None:
    """In both profiles: norm, two products, convolution, scan, product with the sum after it."""
    for found in build("decoder").kernels.values():
        layer = [
            k
            for k in found.kernels
            if any(t.name.startswith("model.layers.1.mamba.") for t in k.inputs)
        ]
        assert [k.kind for k in layer].count("custom_layer") == 2
        assert len(layer) == 5, "the norm's weight has another name"


def facts_of_nothing(**changes: Any) -> StageFacts:
    from longllava_trt.core.stage_spec import StageSpec

    facts = StageFacts(
        spec=StageSpec("projector", (), ()),
        profiles={"images": {}},
        dtype="bfloat16",
        weight_shapes={"projector.0.weight": (8, 8)},
        product_weights=frozenset(),
        decomposed=False,
        rotations=0,
    )
    return replace(facts, **changes)


def test_scratch_has_a_budget() -> None:
    found = replace(read_text(SAID)["chunk"], scratch_bytes=10**9)
    with pytest.raises(ExportError, match=r"scratch must be at most \d+ bytes, got 1000000000"):
        check_budgets(facts_of_nothing(), {"images": found})


@pytest.mark.trt
def test_engines_built_before_kernels_were_recorded_still_load(tmp_path: Path) -> None:
    record = {
        "target": "sm80",
        "flavour": "tensorrt-rtx",
        "tensorrt_version": "1.7.1",
        "dtype": "bfloat16",
        "plugins": {"file": "lib.so", "nbytes": 1, "sha256": "", "versions": {}},
        "stages": {},
        "options": {},
        "format_version": 1,
    }
    (tmp_path / "engine.json").write_text(json.dumps(record))
    assert EngineRecord.load(tmp_path).stages == {}
