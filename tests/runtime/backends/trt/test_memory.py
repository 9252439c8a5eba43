"""A stage that does not fit is refused before its weights are read, and what it takes is counted by its purpose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.engine_record import EngineRecord, engine_folders
from longllava_trt.core.errors import InputError
from longllava_trt.core.kernel_record import ProfileKernels
from longllava_trt.plugins_trt.registry import TensorRT
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
from longllava_trt.runtime.backends.trt.engines import open_engines
from longllava_trt.runtime.backends.trt.memory import stage_bytes

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
        "state": 2 * 4 * hidden + 2 * 2 * capacity * 3,
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
        InputError, match=r"decoder: needs .*0\.0 GB of scratch\), got 0\.0 GB free; build with"
    ):
        TrtDecoder(engines)
