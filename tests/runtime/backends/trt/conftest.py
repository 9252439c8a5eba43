"""A GPU of host memory, a TensorRT that computes with NumPy, and a bundle with engines for them.

Fresh memory holds rubbish. Engines overwrite their outputs with NaN before they read their inputs, so that a state that is
bound to one buffer where it needs two is lost.
"""

# ruff: noqa: N802 - CUDA's own names

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes  # noqa: F401
import numpy as np
import pytest

from longllava_trt.core.engine_record import (
    ENGINES_FOLDER,
    EngineRecord,
    EngineStage,
    EngineWeight,
    PluginRecord,
    ShapeRange,
    StateBinding,
    WeightPart,
    engine_folders,
)
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.plugins_trt.registry import LIBRARY_FILE, TensorRT
from longllava_trt.plugins_trt.spec import OPERATORS
from longllava_trt.runtime.backends.trt.cuda import Cuda
from longllava_trt.runtime.backends.trt.engines import Engines, open_engines

HIDDEN, VOCAB, CAPACITY, CHUNK = 4, 5, 24, 8
KEY, PRESENT_KEY = "past_key_values.1.key", "present.1.key"
RECURRENT, PRESENT_RECURRENT = (
    "past_key_values.0.recurrent_state",
    "present.0.recurrent_state",
)
Arrays = dict[str, np.ndarray]


class Status(IntEnum):
    ok = 0
    no_device = 100
    out_of_memory = 2
    capture_failed = 901


class FakeRuntime:
    """`cuda.bindings.runtime` as far as it is used, on host memory; everything happens at once."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)  # noqa: N815

    def __init__(self) -> None:
        self.devices = 1
        self.capacity = 2**30
        self.blocks: dict[int, np.ndarray] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.launches = 0
        self.before_replay: Callable[[], None] = lambda: None
        self.fails_to_capture = False
        self.gpu = "NVIDIA RTX 1 Ada"
        self.capturable: bool | None = True
        """Answer of contexts; None if they have no such question, as in the full TensorRT."""
        self.shapes: list[dict[str, tuple[int, ...]]] = []
        """Of every launch."""
        self.contexts = 0
        """Execution contexts made."""
        self.fails_at_launch = 0
        """Number of launches after which each fails; 0 if none does."""

    def cudaGetDeviceProperties(self, _: int) -> tuple[Status, Any]:
        return Status.ok, SimpleNamespace(name=self.gpu.encode() + b"\0\0")

    def cudaGetErrorName(self, status: Status) -> tuple[Status, bytes]:
        names = {100: "cudaErrorNoDevice", 2: "cudaErrorMemoryAllocation"}
        return Status.ok, names.get(status, status.name).encode()

    def cudaGetDeviceCount(self) -> tuple[Status, int]:
        return (Status.ok, self.devices) if self.devices else (Status.no_device, 0)

    def cudaMalloc(self, nbytes: int) -> tuple[Status, int]:
        if sum(b.nbytes for b in self.blocks.values()) + nbytes > self.capacity:
            return Status.out_of_memory, 0
        block = np.full(nbytes, 0xFF, np.uint8)
        address = int(block.__array_interface__["data"][0])
        self.blocks[address] = block
        return Status.ok, address

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        used = sum(block.nbytes for block in self.blocks.values())
        return Status.ok, self.capacity - used, self.capacity

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.blocks[address]
        return (Status.ok,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, *_: Any) -> tuple[Status]:
        ctypes.memmove(target, source, nbytes)
        return (Status.ok,)

    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, _: Any) -> tuple[Status]:
        ctypes.memset(address, value, nbytes)
        return (Status.ok,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[Status, int]:
        return Status.ok, 7

    def cudaEventCreateWithFlags(self, _: int) -> tuple[Status, int]:
        return Status.ok, 8

    def nothing(self, *_: Any) -> tuple[Status]:
        return (Status.ok,)

    cudaStreamSynchronize = cudaEventRecord = cudaEventSynchronize = nothing  # noqa: N815
    cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = nothing  # noqa: N815

    def cudaStreamBeginCapture(self, *_: Any) -> tuple[Status]:
        self.captured = []
        return (Status.ok,)

    def cudaStreamEndCapture(self, _: Any) -> tuple[Status, Any]:
        graph, self.captured = self.captured, None
        return (Status.capture_failed if self.fails_to_capture else Status.ok), graph

    def cudaGraphInstantiate(self, graph: Any, _: int) -> tuple[Status, Any]:
        return Status.ok, graph

    def cudaGraphLaunch(self, graph: Any, _: Any) -> tuple[Status]:
        self.before_replay()
        for launch in graph:
            launch()
        return (Status.ok,)


def at(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return the array that lies somewhere."""
    itemsize = np.dtype(dtype).itemsize
    block = (ctypes.c_uint8 * (math.prod(shape) * itemsize)).from_address(address)
    return np.ctypeslib.as_array(block).view(dtype).reshape(shape)


class FakeCache:
    """A runtime cache: the shapes that kernels were compiled for."""

    version = "driver 1"

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self.version, sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        version, kernels = json.loads(blob)
        if version == self.version:
            self.kernels |= set(kernels)
        return bool(version == self.version)


class FakeContext:
    """Launches a NumPy function on whatever is bound."""

    def __init__(self, engine: FakeEngine, cache: FakeCache) -> None:
        self.engine, self.profile, self.cache = engine, 0, cache
        engine.runtime.contexts += 1
        if engine.runtime.capturable is not None:
            self.is_stream_capturable = lambda _: bool(engine.runtime.capturable)
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = (0, 0)

    def set_optimization_profile_async(self, place: int, _: int) -> bool:
        self.profile = place
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.engine.runtime.captured is None, "shapes are to be set before a capture"
        allowed = list(self.engine.stage.profiles.values())[self.profile][name]
        self.shapes[name] = shape
        ends = zip(allowed.min, shape, allowed.max, strict=True)
        return all(low <= size <= high for low, size, high in ends)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.engine.runtime.captured is None, "addresses are to be set before a capture"
        self.addresses[name] = address
        return name in self.engine.names and address % 16 == 0

    def execute_async_v3(self, _: int) -> bool:
        if not self.engine.names <= self.addresses.keys() or not self.memory[0]:
            return False
        addresses, shapes, runtime = dict(self.addresses), dict(self.shapes), self.engine.runtime
        if runtime.fails_at_launch and runtime.launches >= runtime.fails_at_launch:
            return False
        runtime.shapes.append(shapes)
        self.cache.kernels.add(f"{min(self.engine.names)} {sorted(shapes.items())}")

        def launch() -> None:
            runtime.launches += 1
            self.engine.compute(addresses, shapes)

        if runtime.captured is None:
            launch()
        else:
            runtime.captured.append(launch)
        return True


class FakeEngine:
    """An engine, computed by a NumPy function of arrays that may be written."""

    def __init__(self, stage: EngineStage, function: Any, runtime: FakeRuntime) -> None:
        self.stage, self.function, self.runtime = stage, function, runtime
        self.names = {t.name for t in (*stage.inputs, *stage.outputs)}
        self.names |= {w.name for w in stage.weights}

    def get_device_memory_size_for_profile_v2(self, place: int) -> int:
        return 64 * (1 + place)

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(
            strategy="",
            dynamic_shapes_kernel_specialization_strategy="lazy",
            cache=None,
            create_runtime_cache=FakeCache,
        )

        def choose(strategy: str) -> None:
            config.strategy = strategy

        def take(cache: FakeCache) -> bool:
            config.cache = cache
            return True

        config.set_execution_context_allocation_strategy = choose
        config.set_runtime_cache = take
        return config

    def create_execution_context(self, config: Any) -> FakeContext:
        if config == "user-managed":  # as the full TensorRT is asked
            return FakeContext(self, FakeCache())
        assert config.strategy == "user-managed"
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return FakeContext(self, config.cache)

    def compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        dims = {
            dim: size
            for spec in self.stage.inputs
            for dim, size in zip(spec.shape, shapes.get(spec.name, ()), strict=False)
            if isinstance(dim, str)
        }

        def array(spec: TensorSpec) -> np.ndarray:
            shape = tuple(dims[d] if isinstance(d, str) else d for d in spec.shape)
            return at(addresses[spec.name], shape, spec.dtype)

        outputs = {spec.name: array(spec) for spec in self.stage.outputs}
        aliased = {s.output for s in self.stage.states if s.mode == "alias"}
        for name in outputs.keys() - aliased:
            outputs[name].fill(np.nan)
        inputs = {spec.name: array(spec) for spec in self.stage.inputs}
        inputs |= {w.name: at(addresses[w.name], w.shape, w.dtype) for w in self.stage.weights}
        self.function(inputs, outputs)


def decode(inputs: Arrays, outputs: Arrays) -> None:
    """A decoder of one recurrence and one cache; what is fed earlier matters to both."""
    h, past = inputs[RECURRENT][0].copy(), int(inputs["past_len"][0])
    key = outputs[PRESENT_KEY]
    assert key.ctypes.data == inputs[KEY].ctypes.data, "the cache is to be written in place"
    for t, x in enumerate(inputs["inputs_embeds"][0]):
        h = np.float32(0.5) * h + x
        key[0, :, past + t] = x[:3]
    seen = key[0, :, : past + len(inputs["inputs_embeds"][0])].astype(np.float32).sum((0, 1))
    outputs[PRESENT_RECURRENT][0] = h
    outputs["logits"][0, 0] = (h + np.append(seen, 0)) @ inputs["head"] + inputs["bias"]


def see(inputs: Arrays, outputs: Arrays) -> None:
    outputs["image_features"][:] = inputs["pixel_values"] * 2


def _stage(name: str, **parts: Any) -> EngineStage:
    empty: dict[str, Any] = {"weights": (), "states": (), "plugins": {}, "attention": {}}
    counts = {"num_layers": 1, "seconds": 0.0, "peak_rss_bytes": 0, "key": "", "graph_sha256": ""}
    plan = name.encode()
    digest = hashlib.sha256(plan).hexdigest()
    file = {"file": f"{name}.engine", "nbytes": len(plan), "sha256": digest}
    return EngineStage(**(empty | counts | file | parts))


def _stages() -> dict[str, EngineStage]:
    def ranged(sequences: int, *sizes: int) -> dict[str, ShapeRange]:
        """Return ranges of a batch from one sequence on, as engines for several have them."""
        batches = (1, 1, sequences)

        def of(*rest: int) -> ShapeRange:
            return ShapeRange(*((batch, *rest) for batch in batches))

        embeds = ShapeRange(*((b, n, HIDDEN) for b, n in zip(batches, sizes, strict=True)))
        states = {RECURRENT: of(HIDDEN), KEY: of(2, CAPACITY, 3)}
        return {"inputs_embeds": embeds, "past_len": of(), **states}

    def weight(name: str, shape: tuple[int, ...], offset: int) -> EngineWeight:
        part = WeightPart(
            name=name,
            file="w.bin",
            offset=offset,
            nbytes=4 * math.prod(shape),
            dtype="float32",
        )
        return EngineWeight(name=name, shape=shape, dtype="float32", parts=(part,))

    decoder = _stage(
        "decoder",
        inputs=(
            TensorSpec("inputs_embeds", ("batch", "seq_len", HIDDEN), "bfloat16"),
            TensorSpec("past_len", ("batch",), "int64"),
            TensorSpec(RECURRENT, ("batch", HIDDEN), "float32"),
            TensorSpec(KEY, ("batch", 2, CAPACITY, 3), "bfloat16"),
        ),
        outputs=(
            TensorSpec("logits", ("batch", 1, VOCAB), "float32"),
            TensorSpec(PRESENT_RECURRENT, ("batch", HIDDEN), "float32"),
            TensorSpec(PRESENT_KEY, ("batch", 2, CAPACITY, 3), "bfloat16"),
        ),
        profiles={"chunk": ranged(1, 1, 4, CHUNK), "decode": ranged(4, 1, 1, 1)},
        weights=(weight("head", (HIDDEN, VOCAB), 0), weight("bias", (VOCAB,), 4 * HIDDEN * VOCAB)),
        states=(
            StateBinding(input=RECURRENT, output=PRESENT_RECURRENT, mode="double-buffer"),
            StateBinding(input=KEY, output=PRESENT_KEY, mode="alias"),
        ),
    )
    vision = _stage(
        "vision",
        inputs=(TensorSpec("pixel_values", ("num_images", 3), "float32"),),
        outputs=(TensorSpec("image_features", ("num_images", 3), "float32"),),
        profiles={"images": {"pixel_values": ShapeRange((1, 3), (2, 3), (4, 3))}},
    )
    return {"vision": vision, "decoder": decoder}


@pytest.fixture
def weights() -> np.ndarray:
    """The head, then the bias."""
    rng = np.random.default_rng(3)
    return rng.standard_normal(HIDDEN * VOCAB + VOCAB).astype(np.float32)


@pytest.fixture
def engine_bundle(tmp_path: Path, weights: np.ndarray) -> Path:
    """A folder with engines for an A100; nothing else of a bundle."""
    folder = tmp_path / ENGINES_FOLDER / "sm80-fake"
    folder.mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(weights.tobytes())
    stages = _stages()
    for name in stages:
        (folder / f"{name}.engine").write_bytes(name.encode())
    # any shared library: what TensorRT finds in it is made up as well
    library = Path(str(importlib.util.find_spec("_ctypes").origin)).read_bytes()  # type: ignore[union-attr]
    (folder / LIBRARY_FILE).write_bytes(library)
    EngineRecord(
        target="sm80",
        flavour="tensorrt-rtx",
        tensorrt_version="1.2.3",
        dtype="bfloat16",
        plugins=PluginRecord(
            file=LIBRARY_FILE,
            nbytes=len(library),
            sha256=hashlib.sha256(library).hexdigest(),
            versions={},
        ),
        stages=stages,
        options={},
    ).save(folder)
    return tmp_path


@pytest.fixture
def fake_runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def engines(engine_bundle: Path, fake_runtime: FakeRuntime, fake_tensorrt: TensorRT) -> Engines:
    cuda = Cuda(fake_runtime)
    return open_engines(engine_bundle, cuda=cuda, tensorrt=fake_tensorrt, target="sm80")


@pytest.fixture
def full_engines(
    engine_bundle: Path, fake_runtime: FakeRuntime, fake_tensorrt: TensorRT
) -> Engines:
    """Engines of the full TensorRT, which compiles nothing when it runs."""
    (folder,) = engine_folders(engine_bundle)
    replace(EngineRecord.load(folder), flavour="tensorrt").save(folder)
    fake_runtime.capturable = None
    tensorrt = replace(fake_tensorrt, flavour="tensorrt")
    return open_engines(engine_bundle, cuda=Cuda(fake_runtime), tensorrt=tensorrt, target="sm80")


@pytest.fixture
def fake_tensorrt(fake_runtime: FakeRuntime) -> TensorRT:
    """A TensorRT whose plans are the names of stages."""
    functions: dict[str, Any] = {"decoder": decode, "vision": see}
    stages = _stages()
    creators: list[Any] = []

    class Registry:
        all_creators = creators

        def load_library(self, _: str) -> object:
            creators.extend(
                SimpleNamespace(name=s.op_type, plugin_version="1", plugin_namespace="")
                for s in OPERATORS
            )
            return object()

    class Runtime:
        def __init__(self, log: Any) -> None:
            assert log

        def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
            name = plan.decode()
            return FakeEngine(stages[name], functions[name], fake_runtime)

    def make_logger(_: Any) -> object:
        return object()

    make_logger.WARNING = 1  # type: ignore[attr-defined]
    module = SimpleNamespace(
        Logger=make_logger,
        Runtime=Runtime,
        get_plugin_registry=Registry,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user-managed"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    return TensorRT(flavour="tensorrt-rtx", version="1.2.3", module=module)
