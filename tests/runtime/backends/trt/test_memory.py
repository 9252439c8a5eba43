"""A stage that does not fit is refused before its weights are read, and what it takes is counted by its purpose."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.engine_record import EngineRecord, EngineStage, EngineWeight, engine_folders
from longllava_trt.core.errors import InputError
from longllava_trt.core.kernel_record import ProfileKernels
from longllava_trt.plugins_trt.registry import TensorRT
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
from longllava_trt.runtime.backends.trt.engines import open_engines
from longllava_trt.runtime.backends.trt.memory import require_memory, stage_bytes

SCRATCH = 5_000_000


def with_scratch(record: EngineRecord) -> EngineRecord:
    """Return a record whose decoder works in much memory in its larger profile."""
    kernels = {
        name: ProfileKernels(scratch_bytes=nbytes, activation_bytes=nbytes, kernels=())
        for name, nbytes in (("chunk", SCRATCH), ("decode", 10))
    }
    stages = dict(record.stages)
    stages["decoder"] = replace(stages["decoder"], kernels=kernels)
    return replace(record, stages=stages)


@pytest.fixture
def record(engine_bundle: Path) -> EngineRecord:
    (folder,) = engine_folders(engine_bundle)
    record = with_scratch(EngineRecord.load(folder))
    record.save(folder)
    return record


def test_bytes_are_counted_by_purpose(record: EngineRecord) -> None:
    stage = record.stages["decoder"]
    sizes = {spec.name: spec.shape for spec in stage.inputs}
    recurrent, key = (next(n for n in sizes if n.endswith(end)) for end in ("state", ".key"))
    hidden, capacity = int(sizes[recurrent][1]), int(sizes[key][2])
    vocab = int(stage.outputs[0].shape[2])
    assert stage_bytes(stage) == {
        "weights": 4 * (hidden * vocab + vocab),
        "keys and values": 2 * 2 * capacity * 3,
        "states": 2 * 4 * hidden,
        "scratch": SCRATCH,
    }


def test_a_stage_that_does_not_fit_is_refused_before_its_weights_are_read(
    record: EngineRecord, engine_bundle: Path, fake_runtime: Any, fake_tensorrt: TensorRT
) -> None:
    def read_nothing(*_: object) -> Any:
        raise AssertionError("weights were read")

    fake_runtime.capacity = SCRATCH
    engines = open_engines(
        engine_bundle,
        cuda=Cuda(fake_runtime),
        tensorrt=fake_tensorrt,
        target=record.target,
        read_weights=read_nothing,
    )
    with pytest.raises(
        InputError,
        match=r"decoder: needs .*5\.0 MB of scratch\), got 5\.0 MB free; no --max-context",
    ):
        TrtDecoder(engines)


class Free:
    """A device with some free memory."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def free_bytes(self) -> int:
        return self.nbytes


def with_context(stage: EngineStage, capacity: int) -> EngineStage:
    """Return a stage with room for more positions."""
    inputs = (
        replace(spec, shape=(*spec.shape[:2], capacity, *spec.shape[3:]))
        if spec.name.endswith(".key")
        else spec
        for spec in stage.inputs
    )
    return replace(stage, inputs=tuple(inputs))


def with_experts(stage: EngineStage, dtype: str = "bfloat16") -> EngineStage:
    """Return a stage with 800 kB of experts, if they are bfloat16."""
    shape = (4, 100, 1000)
    experts = EngineWeight(
        name="model.layers.1.moe.experts.down", shape=shape, dtype=dtype, parts=()
    )
    return replace(stage, weights=(*stage.weights, experts))


def refusal(stage: EngineStage, free: int) -> str:
    with pytest.raises(InputError) as caught:
        require_memory(Free(free), "decoder", stage)  # type: ignore[arg-type]
    return str(caught.value)


def test_the_longest_context_that_fits_is_named(record: EngineRecord) -> None:
    stage = with_context(record.stages["decoder"], 1_000_000)
    free = SCRATCH + 6_000_000
    error = refusal(stage, free)
    assert "12.0 MB of keys and values" in error
    assert "5.0 MB of scratch), got 11.0 MB free" in error
    found = re.search(r"build with --max-context (\d+), which fits", error)
    assert found is not None
    context = int(found[1])
    require_memory(Free(free), "decoder", with_context(stage, context))  # type: ignore[arg-type]
    refusal(with_context(stage, context + 1), free)


def test_smaller_experts_are_named_where_no_context_fits(record: EngineRecord) -> None:
    stage = with_experts(with_context(record.stages["decoder"], 100_000))
    needed = sum(stage_bytes(stage).values())
    assert "; build with --max-context " in refusal(stage, needed - 1_000)
    error = refusal(stage, needed - 1_200_000 - 100_000)
    assert "export with --moe-quant w8a16 and build with --max-context " in error
    error = refusal(stage, needed - 1_200_000 - 500_000)
    assert "export with --moe-quant w4a16 and build with --max-context " in error
    error = refusal(with_experts(stage, "int8"), needed - 1_200_000 - 800_000)
    assert "no --max-context and no format of experts would fit: use a GPU with more" in error


def test_a_stage_without_a_cache_wants_smaller_batches(record: EngineRecord) -> None:
    stage = with_experts(record.stages["vision"])
    error = refusal(stage, 1000)
    assert "build with a smaller --vision-batch or --chunk, or end other programs" in error
