"""A whole model on engines: the made-up TensorRT computes with ONNX Runtime, so answers must be ONNX Runtime's."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longllava_trt.core.engine_record import EngineRecord, EngineStage, StateBinding
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.stage_spec import STAGES, present_name
from longllava_trt.runtime.backends.ort.session import OnnxSession
from longllava_trt.runtime.backends.trt.backend import TrtBackend, engine_limits
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
from longllava_trt.runtime.backends.trt.engines import Engines, open_engines
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from tests.runtime.backends.trt.conftest import Arrays, FakeEngine

CHECKPOINT_EVERY = 2
PICTURE_COUNT = 5


def engine_stage(
    manifest: Manifest, name: str, *, chunk: int = 4096, vision_batch: int = 16
) -> EngineStage:
    """Return what `longllava-trt build` would record, but for weights, which ONNX Runtime holds."""
    from longllava_trt.export.engine.profiles import EngineLimits, engine_spec, stage_profiles

    limits = EngineLimits(max_context=max(4096, chunk), chunk=chunk, vision_batch=vision_batch)
    spec = engine_spec(manifest.stage(name).spec, limits)
    outputs = {tensor.name for tensor in spec.outputs}
    states = tuple(
        StateBinding(
            input=tensor.name,
            output=present_name(tensor.name),
            mode="alias" if tensor.name.endswith((".key", ".value")) else "double-buffer",
        )
        for tensor in spec.inputs
        if present_name(tensor.name) in outputs
    )
    return EngineStage(
        file=f"{name}.engine",
        nbytes=len(name),
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        key="",
        graph_sha256="",
        inputs=spec.inputs,
        outputs=spec.outputs,
        profiles=stage_profiles(spec, limits),
        weights=(),
        states=states,
        num_layers=1,
        plugins={},
        attention={},
        seconds=0.0,
        peak_rss_bytes=0,
    )


@pytest.fixture
def engines(
    tiny_bundle: Path, engine_bundle: Path, fake_runtime: Any, fake_tensorrt: Any
) -> Engines:
    manifest = Manifest.load(tiny_bundle)
    folder = engine_bundle / "engines" / "sm80-fake"
    stages = {name: engine_stage(manifest, name) for name in STAGES}
    for name in stages:
        (folder / f"{name}.engine").write_text(name)
    replace(EngineRecord.load(folder), stages=stages).save(folder)

    class Runtime:
        def __init__(self, _: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine:
            name = plan.decode()
            session = OnnxSession(tiny_bundle, manifest, name, num_threads=1)

            def compute(inputs: Arrays, outputs: Arrays) -> None:
                for output, value in session.run(inputs).items():
                    outputs[output][:] = value

            return FakeEngine(stages[name], compute, fake_runtime)

    module = SimpleNamespace(**{**vars(fake_tensorrt.module), "Runtime": Runtime})
    tensorrt = replace(fake_tensorrt, module=module)
    cuda = Cuda(fake_runtime)
    return open_engines(tiny_bundle, folder=folder, cuda=cuda, tensorrt=tensorrt)


def test_a_conversation_on_engines_is_that_of_onnxruntime(
    engines: Engines, tiny_bundle: Path, tmp_path: Path
) -> None:
    from longllava_trt.bench.pictures import draw_pictures

    options = RunOptions(backend="trt", chunk_size=512, vision_batch=2)
    backend = TrtBackend(engines)
    model = LongLLaVA(tiny_bundle, Manifest.load(tiny_bundle), options, backend=backend)
    assert model.runner.backend is backend
    pictures = draw_pictures(tmp_path, PICTURE_COUNT)
    answers, scores = [], []
    for one in (
        model,
        LongLLaVA.from_bundle(tiny_bundle, RunOptions(backend="ort", num_threads=1)),
    ):
        session = one.session(checkpoint_every=CHECKPOINT_EVERY)
        assert session.ingest(pictures).num_images == PICTURE_COUNT
        first = session.ask("What is this?", max_new_tokens=8)
        again = session.ask("What is this?", max_new_tokens=8)
        assert again.token_ids == first.token_ids, "a question leaves no trace"
        session.rewind(3)
        scores.append(session.score("And now?", first.token_ids))
        answers.append(first.token_ids)
    assert answers[0] == answers[1]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert isinstance(model.runner.decoder, TrtDecoder)
    assert model.runner.decoder.graphs_are_right


@pytest.mark.parametrize(
    ("built", "preferred"), [((64, 2), (64, 2)), ((8192, 32), (4096, 16))], ids=str
)
def test_sizes_are_a_gpus_within_the_engines_limits(
    tiny_bundle: Path, built: tuple[int, int], preferred: tuple[int, int]
) -> None:
    manifest, (chunk, batch) = Manifest.load(tiny_bundle), built
    stages = {
        name: engine_stage(manifest, name, chunk=chunk, vision_batch=batch)
        for name in ("vision", "decoder")
    }
    limits = engine_limits(stages)
    assert (limits.longest_chunk, limits.largest_vision_batch) == built
    assert (limits.preferred_chunk, limits.preferred_vision_batch) == preferred
    none = engine_limits({})
    assert (none.preferred_chunk, none.preferred_vision_batch) == (4096, 16)


def test_the_gpu_benchmark_shows_images_to_a_bundle_without_weights(
    engines: Engines,
    tiny_bundle: Path,
    engine_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.gpu import images
    from benchmarks.gpu.context import BenchContext

    bundle = tmp_path / "scale" / "tiny"
    shutil.copytree(tiny_bundle, bundle, ignore=shutil.ignore_patterns("weights", "*.onnx"))
    shutil.copytree(engine_bundle / "engines", bundle / "engines")
    monkeypatch.setattr(images, "open_with_dummy_weights", {bundle: engines}.__getitem__)
    monkeypatch.setattr(images, "used_gib", lambda: 12.5)
    monkeypatch.setattr(images, "_COUNTS", (3, 18))
    rows = [*images.images(BenchContext(out=tmp_path, scale=bundle.parent))]
    assert [row["case"].partition(", ")[2] for row in rows] == [
        "3 images",
        "18 images",
        "18 images, vision and decoder in turn",
    ]
    for row in rows:
        assert row["ok"], row
        assert (row["memory_gib"], row["graphs"]) == (12.5, "True")
    assert rows[2]["vision_hidden"] <= 0, "in turn, stages add up to less than the whole"
