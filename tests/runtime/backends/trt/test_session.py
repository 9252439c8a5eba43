"""Opening engines and running a stage: what fits runs, and what does not is refused in our own words."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longllava_trt.core.engine_record import EngineRecord, engine_folders
from longllava_trt.core.errors import (
    ContractError,
    InputError,
    LongLLaVAError,
    ManifestError,
    MissingDependencyError,
)
from longllava_trt.plugins_trt.registry import LIBRARY_FILE
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.engines import Engines, open_engines
from longllava_trt.runtime.backends.trt.session import TrtSession
from longllava_trt.runtime.inputs.prefetch import prefetch
from tests.runtime.backends.trt.conftest import Status


@pytest.fixture
def session(engines: Engines) -> TrtSession:
    return TrtSession(engines, "vision")


@pytest.mark.parametrize("num_images", [1, 3, 4])
def test_a_stage_runs(session: TrtSession, num_images: int) -> None:
    pixels = np.random.default_rng(num_images).standard_normal((num_images, 3)).astype(np.float32)
    first = session.run({"pixel_values": pixels})["image_features"]
    session.run({"pixel_values": pixels + 1})
    np.testing.assert_array_equal(first, pixels * 2)


def batches(fake_runtime: Any) -> list[int]:
    """Return the number of images of every launch."""
    return [shapes["pixel_values"][0] for shapes in fake_runtime.shapes]


def test_images_come_in_powers_of_two(session: TrtSession, fake_runtime: Any) -> None:
    session.warm_up()
    for count in (1, 2, 3, 4):
        session.run({"pixel_values": np.zeros((count, 3), np.float32)})
    assert batches(fake_runtime) == [4, 2, 1, 1, 2, 2, 1, 4]


def test_the_full_tensorrt_takes_images_whole(full_engines: Engines, fake_runtime: Any) -> None:
    session = TrtSession(full_engines, "vision")
    session.run({"pixel_values": np.zeros((3, 3), np.float32)})
    assert batches(fake_runtime) == [3]


def test_more_than_the_engine_takes_is_refused(session: TrtSession) -> None:
    with pytest.raises(InputError, match="vision: its engine was built for num_images up to 4"):
        session.run({"pixel_values": np.zeros((5, 3), np.float32)})


def test_an_input_that_breaks_the_contract_is_refused(session: TrtSession) -> None:
    with pytest.raises(ContractError, match="'pixel_values' must be"):
        session.run({"pixel_values": np.zeros((2, 4), np.float32)})


def test_no_gpu_is_said(fake_runtime: Any) -> None:
    fake_runtime.devices = 0
    with pytest.raises(
        MissingDependencyError, match=r"got cudaErrorNoDevice \(the driver finds none\); run"
    ):
        Cuda(fake_runtime)


def test_engines_for_another_gpu_are_refused(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    cuda = Cuda(fake_runtime)
    with pytest.raises(InputError, match="engines for sm80, and this GPU is sm90; run"):
        open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm90")


def test_a_folder_for_another_gpu_is_refused_unless_it_is_to_be_tried(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engine_bundle / "engines" / "sm80-fake"
    given: dict[str, Any] = {"folder": folder, "cuda": Cuda(fake_runtime), "target": "sm90"}
    with monkeypatch.context() as patch:
        # before TensorRT is asked
        patch.setattr(fake_tensorrt.module, "Runtime", None)
        with pytest.raises(InputError, match="engines are for sm80, and this GPU is sm90; run"):
            open_engines(engine_bundle, tensorrt=fake_tensorrt, **given)
    found = open_engines(engine_bundle, tensorrt=fake_tensorrt, on_any_gpu=True, **given)
    assert found.load("vision").spec.name == "vision"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("cudaErrorInsufficientDriver", "its driver is missing, or older than cuda-python"),
        ("cudaErrorNoDevice", "the driver finds none"),
    ],
)
def test_a_driver_that_is_missing_is_said(
    code: str, why: str, fake_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what cuda-bindings 13.5 answers on a machine without libcuda
    monkeypatch.setattr(fake_runtime, "cudaGetDeviceCount", lambda: (Status.no_device, None))
    monkeypatch.setattr(fake_runtime, "cudaGetErrorName", lambda _: (Status.ok, code.encode()))
    with pytest.raises(MissingDependencyError, match=rf"got {code} \({why}\); run with --backend"):
        Cuda(fake_runtime)


def test_another_flavour_of_tensorrt_is_refused(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = engine_bundle / "engines" / "sm80-fake" / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flavour": "tensorrt"}))
    cuda = Cuda(fake_runtime)
    with pytest.raises(ManifestError, match=r"need tensorrt 1\.2\.3, got tensorrt-rtx 1\.2\.3"):
        open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is not installed; pip install"):
        open_engines(engine_bundle, cuda=cuda, target="sm80")


def test_another_version_of_tensorrt_is_refused(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    path = engine_bundle / "engines" / "sm80-fake" / "engine.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"tensorrt_version": "1.2.4"}))
    cuda = Cuda(fake_runtime)
    with pytest.raises(ManifestError, match=r"need tensorrt-rtx 1\.2\.4, got tensorrt-rtx 1\.2\.3"):
        open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")


@pytest.mark.parametrize("file", ["decoder.engine", "liblongllava_plugins.so"])
def test_a_changed_file_is_refused(
    file: str, engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    path = engine_bundle / "engines" / "sm80-fake" / file
    path.write_bytes(b"x" * path.stat().st_size)
    cuda = Cuda(fake_runtime)
    with pytest.raises(ManifestError, match=f"{file}: must have sha256"):
        open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")


@pytest.mark.parametrize("file", ["decoder.engine", "liblongllava_plugins.so", "engine.json"])
@pytest.mark.parametrize("cut_to", [None, 3], ids=["missing", "cut off"])
def test_a_file_that_is_missing_or_cut_off_is_named(
    cut_to: int | None, file: str, engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    folder = engine_bundle / "engines" / "sm80-fake"
    if cut_to is None:
        (folder / file).unlink()
    else:
        os.truncate(folder / file, cut_to)
    with pytest.raises(LongLLaVAError, match=f"{file}.*build") as caught:
        open_engines(
            engine_bundle,
            folder=folder,
            cuda=Cuda(fake_runtime),
            tensorrt=fake_tensorrt,
            target="sm80",
        )
    assert isinstance(caught.value, ManifestError)


def test_a_plugin_library_for_another_processor_is_named(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    (folder,) = engine_folders(engine_bundle)
    library = folder / LIBRARY_FILE
    content = bytearray(library.read_bytes())
    content[18] = 183 if content[18] != 183 else 62
    library.write_bytes(content)
    record = EngineRecord.load(folder)
    digest = hashlib.sha256(content).hexdigest()
    replace(record, plugins=replace(record.plugins, sha256=digest)).save(folder)
    with pytest.raises(
        InputError, match=r"must be made for this kind of processor .* build .* --force' on this"
    ):
        open_engines(engine_bundle, cuda=Cuda(fake_runtime), tensorrt=fake_tensorrt, target="sm80")


def test_a_stage_without_an_engine_is_named(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> None:
    cuda = Cuda(fake_runtime)
    engines = open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")
    with pytest.raises(ManifestError, match="no engine for stage 'projector'"):
        engines.load("projector")


def test_a_plan_that_tensorrt_refuses_is_named(
    engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fake_tensorrt.module.Runtime
    monkeypatch.setattr(runtime, "deserialize_cuda_engine", lambda *_: None)
    cuda = Cuda(fake_runtime)
    engines = open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")
    with pytest.raises(ManifestError, match=r"vision\.engine: TensorRT cannot load an engine for"):
        engines.load("vision")


def test_a_failing_call_says_which_and_why(fake_runtime: Any) -> None:
    cuda = Cuda(fake_runtime)
    fake_runtime.capacity = 0
    with pytest.raises(LongLLaVAError, match="cudaMalloc: CUDA returned cudaErrorMemoryAllocation"):
        cuda.malloc(16)


def test_items_run_one_ahead_and_in_order() -> None:
    made: list[int] = []

    def items() -> Any:
        for i in range(5):
            made.append(i)
            yield i

    got = []
    for item in prefetch(items()):
        got.append(item)
        assert len(made) <= item + 2
    assert got == made == list(range(5))


def test_an_error_comes_at_its_place_and_closing_closes() -> None:
    closed: list[bool] = []

    def items() -> Any:
        try:
            yield 1
            yield 2
            raise InputError("broken")
        finally:
            closed.append(True)

    ahead = prefetch(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(InputError, match="broken"):
        next(ahead)
    early = prefetch(items())
    next(early)
    early.close()  # type: ignore[attr-defined]
    assert closed == [True, True]
