"""Engines are built, recorded, published whole, kept while nothing changes, and refused with a reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from longllava_trt.core.engine_record import EngineRecord, engine_folders
from longllava_trt.core.errors import ExportError, InputError, ManifestError
from longllava_trt.core.logs import ProgressEvent
from longllava_trt.core.manifest import Manifest, record_files
from longllava_trt.core.stage_spec import STAGES
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export.bundle import export_bundle
from longllava_trt.export.engine.build import BuildOptions, BuildReport, build_engines
from longllava_trt.export.engine.profiles import EngineLimits
from longllava_trt.plugins_trt.library.build import build_library
from longllava_trt.plugins_trt.registry import TensorRT
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

pytestmark = [pytest.mark.trt]

LIMITS = EngineLimits(max_context=48, chunk=16, vision_batch=3)
OPTIONS = BuildOptions(flavour="auto", limits=LIMITS)


@pytest.fixture(scope="module")
def bundle(bfloat16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(bfloat16_bundle, tmp_path_factory.mktemp("build") / "bundle"))


@pytest.fixture(scope="module")
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture(scope="module")
def first(
    tensorrt: TensorRT, bundle: Path, plugin_library: Path, events: list[ProgressEvent]
) -> BuildReport:
    """The first build of all stages, from which the tests of this file go on."""
    return build_engines(bundle, OPTIONS, plugins=plugin_library, progress=events.append)


def test_all_stages_are_built_and_recorded(first: BuildReport, bundle: Path) -> None:
    record = EngineRecord.load(first.folder)
    assert list(engine_folders(bundle)) == [first.folder]
    assert first.folder.name.startswith("sm80-trt")
    assert first.built == tuple(record.stages) == ("vision", "projector", "embed", "decoder")
    assert record.differences(first.folder) == []
    assert sorted(p.name for p in first.folder.iterdir()) == sorted(
        ["engine.json", record.plugins.file, *(s.file for s in record.stages.values())]
    )
    assert record == first.record, "what is read is what was written"
    assert not [p for p in first.folder.parent.iterdir() if p.name.startswith(".")]


def test_the_decoder_is_recorded_as_its_contract(first: BuildReport, bundle: Path) -> None:
    decoder = first.record.stages["decoder"]
    contract = Manifest.load(bundle).stage("decoder").spec
    assert [t.name for t in decoder.inputs] == [t.name for t in contract.inputs]
    assert [t.name for t in decoder.outputs] == [t.name for t in contract.outputs]
    key = next(t for t in decoder.inputs if t.name == "past_key_values.4.key")
    assert (key.shape, key.dtype) == ((1, 2, 48, 16), "bfloat16")
    ranges = {name: shapes["inputs_embeds"] for name, shapes in decoder.profiles.items()}
    assert {n: (r.min[1], r.opt[1], r.max[1]) for n, r in ranges.items()} == {
        "chunk": (1, 8, 16),
        "decode": (1, 1, 2),
    }
    modes = {s.output: (s.input, s.mode) for s in decoder.states}
    assert modes["present.4.value"] == ("past_key_values.4.value", "alias")
    assert modes["present.0.recurrent_state"][1] == "double-buffer"
    assert len(modes) == 16
    assert decoder.plugins == {
        "CachedAttention": 1,
        "CausalConvWithState": 7,
        "MambaScan": 7,
        "SparseMoE": 4,
    }


def test_progress_ends_where_it_should(first: BuildReport, events: list[ProgressEvent]) -> None:
    assert (events[0].done, events[0].total) == (0, 4)
    assert (events[-1].done, events[-1].total) == (4, 4)
    assert {e.note.partition(":")[0] for e in events if e.note} >= set(first.built)


def test_the_bundle_stays_as_it_was(first: BuildReport, bundle: Path) -> None:
    assert Manifest.load(bundle).differences(bundle) == []


def test_nothing_is_built_twice(first: BuildReport, bundle: Path, plugin_library: Path) -> None:
    before = (first.folder / "engine.json").stat().st_mtime_ns
    again = build_engines(bundle, OPTIONS, plugins=plugin_library)
    assert (again.built, again.reused) == ((), first.built)
    assert (first.folder / "engine.json").stat().st_mtime_ns == before


def test_a_damaged_engine_is_built_again_alone(
    first: BuildReport, bundle: Path, plugin_library: Path
) -> None:
    (first.folder / "embed.engine").write_bytes(b"cut off")
    again = build_engines(bundle, OPTIONS, plugins=plugin_library)
    assert again.built == ("embed",)
    assert again.record.differences(again.folder) == []


def test_another_limit_builds_what_it_concerns(
    first: BuildReport, bundle: Path, plugin_library: Path
) -> None:
    options = replace(
        OPTIONS, limits=replace(LIMITS, vision_batch=2), stages=("embed", "projector")
    )
    again = build_engines(bundle, options, plugins=plugin_library)
    assert (again.built, again.reused) == (("projector",), ("embed",))
    assert tuple(again.record.stages) == first.built, "what was not asked for stays"
    assert again.record.stages["projector"].profiles["images"]["image_features"].max[0] == 2


def test_embedded_weights_are_no_inputs(
    first: BuildReport, bundle: Path, plugin_library: Path
) -> None:
    options = replace(OPTIONS, weights="embedded", stages=("embed",))
    report = build_engines(bundle, options, plugins=plugin_library)
    assert report.built == ("embed",)
    embed = report.record.stages["embed"]
    assert embed.weights == ()
    # the table is 512 x 64 in bfloat16
    assert embed.nbytes > first.record.stages["embed"].nbytes + 512 * 64 * 2 // 2


def test_float32_builds_with_attention_taken_apart(
    tensorrt: TensorRT, tiny_bundle: Path, tmp_path: Path, plugin_library: Path
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    report = build_engines(copy, replace(OPTIONS, stages=("vision",)), plugins=plugin_library)
    assert set(report.record.stages["vision"].attention.values()) == {"decomposable"}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"chunk": 1}, "chunk: must be at least 2"),
        ({"chunk": 64, "max_context": 63}, "max-context: must be at least the chunk of 64"),
        ({"vision_batch": 0}, "vision-batch: must be at least 1"),
        ({"sequences": 0}, "sequences: must be 1 to 16, got 0"),
        ({"sequences": 17}, "sequences: must be 1 to 16, got 17"),
    ],
)
def test_impossible_limits_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineLimits(**limits)


def test_unknown_stage_and_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"stages must be among .*got prefill"):
        BuildOptions(stages=("prefill",))
    with pytest.raises(InputError, match="weights must be external or embedded, got 'none'"):
        BuildOptions(weights="none")  # type: ignore[arg-type]


def test_an_altered_graph_is_refused(
    tensorrt: TensorRT, bfloat16_bundle: Path, tmp_path: Path, plugin_library: Path
) -> None:
    copy = Path(shutil.copytree(bfloat16_bundle, tmp_path / "bundle"))
    with (copy / "embed.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match=r"embed\.onnx: must have .* export the bundle again"):
        build_engines(copy, replace(OPTIONS, stages=("embed",)), plugins=plugin_library)
    assert not (copy / "engines").exists()


def test_missing_weights_are_refused_where_they_are_embedded(
    tensorrt: TensorRT, bfloat16_bundle: Path, tmp_path: Path, plugin_library: Path
) -> None:
    copy = Path(shutil.copytree(bfloat16_bundle, tmp_path / "bundle"))
    shutil.rmtree(copy / "weights")
    options = replace(OPTIONS, stages=("embed",))
    with pytest.raises(ManifestError, match=r"weights/.*it is missing"):
        build_engines(copy, replace(options, weights="embedded"), plugins=plugin_library)
    assert build_engines(copy, options, plugins=plugin_library).built == ("embed",)


def test_what_tensorrt_says_is_in_the_error(
    tensorrt: TensorRT, bfloat16_bundle: Path, tmp_path: Path, plugin_library: Path
) -> None:
    """A decoder whose cache has no fixed capacity, which TensorRT refuses."""
    copy = Path(shutil.copytree(bfloat16_bundle, tmp_path / "bundle"))
    graph = copy / "decoder.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"capacity", b"Capacity"))
    manifest = Manifest.load(copy)
    replace(manifest, files=record_files(copy)).save(copy)
    with pytest.raises(
        ExportError, match=r"decoder: TensorRT cannot parse .*static sequence length"
    ):
        build_engines(copy, replace(OPTIONS, stages=("decoder",)), plugins=plugin_library)
    assert not list((copy / "engines").glob("*")), "nothing is left of a build that failed"


def test_an_engine_record_of_another_version_is_refused(first: BuildReport, tmp_path: Path) -> None:
    raw = json.loads((first.folder / "engine.json").read_text())
    (tmp_path / "engine.json").write_text(json.dumps({**raw, "format_version": 99}))
    with pytest.raises(
        ManifestError, match="format version must be 1 or 2, got 99; build the engines"
    ):
        EngineRecord.load(tmp_path)
    (tmp_path / "engine.json").write_text(json.dumps({**raw, "stages": {"vision": {}}}))
    with pytest.raises(ManifestError, match="damaged"):
        EngineRecord.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm80", "sm89"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_presets_in_every_format_are_built_and_audited(
    target: str, dtype: str, tensorrt: TensorRT, tmp_path: Path, traced_before: None
) -> None:
    short = {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    library = build_library(
        archs=[int(target.removeprefix("sm"))], dtypes=[short], heads=((16, 2), (64, 4))
    ).path
    formats: tuple[MoeQuant, ...] = ("none", "w8a16", "w4a16")
    for preset in ("tiny", "mini"):
        # no engine holds a weight
        checkpoint = tmp_path / preset
        write_checkpoint(checkpoint, preset=preset, sparse=True)
        for quant in formats:
            bundle = tmp_path / f"{preset}-{quant}"
            # the other stages have no experts
            stages = STAGES if quant == "none" else ("decoder",)
            export_bundle(checkpoint, bundle, dtype=dtype, moe_quant=quant, stages=stages)
            options = replace(OPTIONS, target=target, stages=tuple(stages))
            report = build_engines(bundle, options, plugins=library)
            assert (report.built, report.record.dtype) == (tuple(stages), dtype)
            check_audited(report)


def check_audited(report: BuildReport) -> None:
    stages = report.record.stages
    assert {kind for s in stages.values() for kind in s.attention.values()} <= {"fused"}
    decoder = stages["decoder"]
    kinds = [t.name.rpartition(".")[2] for t in decoder.inputs]
    assert decoder.plugins["MambaScan"] == kinds.count("recurrent_state")
    assert decoder.plugins["CausalConvWithState"] == kinds.count("conv_state")
    assert decoder.plugins["CachedAttention"] == kinds.count("key")
    assert decoder.plugins["SparseMoE"] == 4
    found = [kernels for stage in stages.values() for kernels in stage.kernels.values()]
    assert all(kernels.launches and kernels.excesses == () for kernels in found)


@pytest.mark.slow
def test_a_build_compiles_the_plugins_that_its_bundle_needs(
    tensorrt: TensorRT, tmp_path: Path, traced_before: None
) -> None:
    write_checkpoint(tmp_path / "checkpoint", preset="tiny", sparse=True)
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", dtype="float16")
    report = build_engines(tmp_path / "bundle", OPTIONS)
    assert report.built == ("vision", "projector", "embed", "decoder")
    check_audited(report)


def test_plugins_of_another_dtype_are_named(
    tensorrt: TensorRT, tiny_bundle: Path, tmp_path: Path, plugin_library: Path
) -> None:
    """A plugin's report reaches the user: this library holds no kernels for float32."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with pytest.raises(ExportError, match=r"cannot build for sm80: .*is not in this library"):
        build_engines(copy, replace(OPTIONS, stages=("decoder",)), plugins=plugin_library)
