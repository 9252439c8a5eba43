"""The same on a real GPU, where there is one: memory, streams, graphs, and a bundle from end to end."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longllava_trt.core.engine_record import EngineWeight, WeightPart
from longllava_trt.core.errors import InputError
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.runtime.backends.trt.cuda import Cuda, CudaMemory, DeviceBlock
from longllava_trt.runtime.backends.weight_loader import load_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        current_target() is None,
        reason="no GPU or no driver: that engines run as the stand-ins say stays unproven",
    ),
]
HAS_TENSORRT = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    pytest.importorskip("cuda.bindings.runtime", reason="the driver is unproven: no cuda-python")
    return Cuda()


def read(cuda: Cuda, block: DeviceBlock, stream: Any) -> np.ndarray:
    host = cuda.pinned(block.nbytes)
    cuda.copy(host.ctypes.data, block.address, block.nbytes, stream=stream)
    cuda.synchronize(stream)
    return host.copy()


def test_memory_keeps_what_was_written(cuda: Cuda) -> None:
    stream, block, host = cuda.stream(), DeviceBlock(cuda, 1001), cuda.pinned(1001)
    host[:] = np.arange(1001) % 251
    cuda.copy(block.address, host.ctypes.data, 1001, stream=stream)
    np.testing.assert_array_equal(read(cuda, block, stream), np.arange(1001) % 251)
    cuda.zero(block, stream=stream)
    assert not read(cuda, block, stream).any()


def test_a_graph_does_again_what_was_captured(cuda: Cuda) -> None:
    stream, blocks = cuda.stream(), [DeviceBlock(cuda, 64) for _ in range(2)]
    host = cuda.pinned(64)
    host[:] = 1
    cuda.copy(blocks[1].address, host.ctypes.data, 64, stream=stream)
    replay = cuda.capture(
        lambda: cuda.copy(blocks[1].address, blocks[0].address, 64, stream=stream), stream=stream
    )
    for value in (7, 9):
        cuda.synchronize(stream)
        host[:] = value
        cuda.copy(blocks[0].address, host.ctypes.data, 64, stream=stream)
        replay()
        assert set(read(cuda, blocks[1], stream)) == {value}


def test_weights_arrive_whole(cuda: Cuda, tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 300_001, np.uint8)
    (tmp_path / "w.bin").write_bytes(content.tobytes())
    part = WeightPart(name="w", file="w.bin", offset=1, nbytes=300_000, dtype="float32")
    weight = EngineWeight(name="w", shape=(75_000,), dtype="float32", parts=(part,))
    found = load_weights(tmp_path, [weight], CudaMemory(cuda), block_bytes=4096)
    np.testing.assert_array_equal(read(cuda, found["w"], cuda.stream()), content[1:])


@pytest.mark.skipif(not HAS_TENSORRT, reason="engines on this GPU are unproven: no TensorRT")
@pytest.mark.slow
def test_engines_give_what_onnxruntime_gives(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    from longllava_trt.core.manifest import Manifest
    from longllava_trt.export.engine.build import BuildOptions, build_engines
    from longllava_trt.export.engine.profiles import EngineLimits
    from longllava_trt.runtime.backends.ort.decoder import Decoder
    from longllava_trt.runtime.backends.ort.session import OnnxSession
    from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
    from longllava_trt.runtime.backends.trt.engines import open_engines

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    limits = EngineLimits(max_context=256, chunk=32, vision_batch=2)
    options = BuildOptions(target="current", stages=("decoder",), limits=limits)
    try:
        report = build_engines(bundle, options)
    except InputError as err:
        pytest.skip(f"engines on this GPU are unproven, TensorRT builds none: {err}")
    embeds = np.random.default_rng(0).standard_normal((1, 40, 64)).astype(np.float32)
    reference = Decoder(OnnxSession(bundle, Manifest.load(bundle), "decoder"))
    engines = open_engines(bundle, folder=report.folder)
    decoder = TrtDecoder(engines)
    decoder.warm_up()
    want, got = reference.new_state(capacity=64), decoder.new_state()
    for piece in np.split(embeds, [20, 31, 32, 33, 34, 36], axis=1):
        a, b = reference.step(piece, want), decoder.step(piece, got)
        assert np.sqrt(np.square(b - a).mean() / np.square(a).mean()) <= 1e-3
    assert decoder.graphs_are_right
    engines.keep_kernels()
    if engines.runtime_cache is not None:
        # what this process compiled, the next one takes
        assert engines.runtime_cache.path.is_file()
        TrtDecoder(open_engines(bundle, folder=report.folder))
        assert "runtime-cache" not in caplog.text
