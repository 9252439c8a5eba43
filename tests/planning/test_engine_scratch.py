"""Memory that engines are expected to work in, against what TensorRT said when it built them."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.core.errors import MissingDependencyError
from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.planning import EngineMemory, PlanRequest, find_gpu, make_plan
from longllava_trt.planning.memory import stage_activation_bytes
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from tests.export.stored_traces import stored_traces, traces_folder

TENTH = 0.1
FLOOR = 16 * 2**20
"""Bytes that the choice of kernels for a small product changes: of `mini` in chunks of 256, and of no larger engine seen."""
SEEN = {
    # preset, chunk, images: vision, projector, decoder
    ("9b", 4096, 16): (226_885_632, 47_988_736, 438_960_640),
    ("9b", 1024, 8): (113_442_816, 29_114_368, 111_264_256),
    ("9b", 512, 4): (61_448_192, 19_677_184, 67_338_752),
    ("53b", 4096, 16): (226_885_632, 47_988_736, 623_600_128),
    ("53b", 1024, 8): (113_442_816, 29_114_368, 157_424_128),
}
"""Numbers of TensorRT-RTX 1.7.1.116 for sm80 in bfloat16, from a checkpoint without weights."""


@pytest.mark.parametrize("case", SEEN, ids=str)
def test_published_sizes_are_within_a_tenth(case: tuple[str, int, int]) -> None:
    preset, chunk, images = case
    expected = stage_activation_bytes(
        PRESETS[preset], dtype="bfloat16", chunk=chunk, vision_batch=images
    )
    said = dict(zip(("vision", "projector", "decoder"), SEEN[case], strict=True))
    assert expected == pytest.approx(said, rel=TENTH)


@pytest.mark.trt
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "chunk", "images"), [("tiny", 16, 3), ("mini", 1024, 4)])
def test_small_engines_are_as_expected_and_plan_takes_their_word(
    preset: str, chunk: int, images: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from longllava_trt.export.engine.build import BuildOptions, build_engines
    from longllava_trt.export.engine.profiles import EngineLimits

    write_checkpoint(tmp_path / "model", preset=preset, sparse=True)
    with stored_traces(traces_folder(tmp_path_factory)):
        export_bundle(tmp_path / "model", tmp_path / "bundle", dtype="bfloat16")
    limits = EngineLimits(max_context=chunk + 81, chunk=chunk, vision_batch=images)
    try:
        record = build_engines(tmp_path / "bundle", BuildOptions(limits=limits)).record
    except MissingDependencyError as err:
        pytest.skip(f"what engines work in is unproven: {err}")
    said = {
        name: max(found.activation_bytes for found in stage.kernels.values())
        for name, stage in record.stages.items()
    }
    assert said.pop("embed") == 0
    expected = stage_activation_bytes(
        PRESETS[preset], dtype="bfloat16", chunk=chunk, vision_batch=images
    )
    assert expected == pytest.approx(said, rel=TENTH, abs=FLOOR)

    memory = EngineMemory.of(record)
    assert memory.scratch == sum(said.values())
    request = PlanRequest(images=0, text_tokens=1, chunk=chunk, vision_batch=images)
    gpu = find_gpu("a100-80gb")
    without = make_plan(PRESETS[preset], gpu, request).device.activations
    assert without == pytest.approx(memory.scratch, rel=TENTH)
