"""Engines of a bundle for this machine's GPU, opened with the TensorRT that built them.

A record that does not fit this machine is refused here with advice, before TensorRT refuses it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longllava_trt.core.engine_record import (
    EngineRecord,
    EngineStage,
    EngineWeight,
    engine_folders,
)
from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.core.logs import Progress
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.plugins_trt.device import current_target
from longllava_trt.plugins_trt.registry import TensorRT, import_tensorrt, load_plugins
from longllava_trt.runtime.backends.trt.cuda import Cuda, CudaMemory, DeviceBlock
from longllava_trt.runtime.backends.trt.memory import require_memory
from longllava_trt.runtime.backends.trt.one_sequence import of_one_sequence
from longllava_trt.runtime.backends.trt.runtime_cache import RuntimeCache
from longllava_trt.runtime.backends.weight_loader import load_weights

__all__ = ["Engines", "LoadedEngine", "ReadWeights", "compiles_new_shapes", "open_engines"]

ReadWeights = Callable[
    [Path, Sequence[EngineWeight], CudaMemory, Progress | None], dict[str, DeviceBlock]
]
"""Puts a stage's weights into the device's memory: bundle, weights, memory, progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """One engine, and its weights on the device."""

    spec: StageSpec
    """Of one sequence."""
    stage: EngineStage
    engine: Any
    """TensorRT's ICudaEngine."""
    weights: dict[str, DeviceBlock]
    """Memory by input name; one copy for all profiles."""


class Engines:
    """One folder of engines; each is loaded when it is needed. Build it with `open_engines`."""

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        record: EngineRecord,
        *,
        tensorrt: TensorRT,
        cuda: Cuda,
        read_weights: ReadWeights,
    ) -> None:
        self.record = record
        self.cuda = cuda
        self.tensorrt = tensorrt
        self._bundle, self._folder = bundle, folder
        self._read_weights = read_weights
        # TensorRT needs its logger and runtime for as long as the engines live
        self._log = tensorrt.module.Logger(tensorrt.module.Logger.WARNING)
        remedy = f"run 'longllava-trt build {bundle} --force' on this machine"
        load_plugins(tensorrt, folder / record.plugins.file, remedy=remedy)
        self._runtime = tensorrt.module.Runtime(self._log)
        self.runtime_cache: RuntimeCache | None = None
        """Kernels that TensorRT-RTX compiles here; the full TensorRT compiles none."""
        if self.compiles_new_shapes:
            self.runtime_cache = RuntimeCache(folder, tensorrt, gpu=cuda.device_name())
            weakref.finalize(self, self.runtime_cache.save)

    @property
    def compiles_new_shapes(self) -> bool:
        """Whether TensorRT compiles kernels at the first call of each new shape."""
        return compiles_new_shapes(self.record)

    def keep_kernels(self) -> None:
        """Write the kernels that were compiled so far to the runtime cache; also done at the end."""
        if self.runtime_cache is not None:
            self.runtime_cache.save()

    def load(self, stage: str, *, progress: Progress | None = None) -> LoadedEngine:
        """Load an engine, and its weights into the device's memory.

        Raises:
            ManifestError: If there is none for the stage, or TensorRT refuses it.
            InputError: If the device has too little free memory for it.
        """
        if stage not in self.record.stages:
            raise ManifestError(
                f"{self._folder}: has no engine for stage '{stage}'; run 'longllava-trt build {self._bundle}'"
            )
        found = self.record.stages[stage]
        plan = (self._folder / found.file).read_bytes()
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ManifestError(
                f"{self._folder / found.file}: TensorRT cannot load an engine for "
                f"{self.record.target} here (the lines above say why); "
                f"run 'longllava-trt build {self._bundle} --force' for this GPU"
            )
        require_memory(self.cuda, stage, found)
        memory = CudaMemory(self.cuda)
        weights = self._read_weights(self._bundle, found.weights, memory, progress)
        return LoadedEngine(
            spec=StageSpec(
                stage,
                tuple(map(of_one_sequence, found.inputs)),
                tuple(map(of_one_sequence, found.outputs)),
            ),
            stage=found,
            engine=engine,
            weights=weights,
        )


def compiles_new_shapes(record: EngineRecord) -> bool:
    """Return whether the TensorRT of these engines compiles kernels at the first call of each new shape."""
    return record.flavour == "tensorrt-rtx"


def open_engines(
    bundle: Path,
    *,
    folder: Path | None = None,
    cuda: Cuda | None = None,
    tensorrt: TensorRT | None = None,
    target: str | None = None,
    on_any_gpu: bool = False,
    read_weights: ReadWeights | None = None,
) -> Engines:
    """Open the engines of a bundle for this machine's GPU.

    Args:
        bundle: Folder with `engines/` inside.
        folder: Folder of engines; by default the newest for ``target``.
        cuda: The device; by default the first GPU.
        tensorrt: TensorRT that runs them; by default the flavour that built them.
        target: Architecture of the GPU, such as `sm80`; by default the driver's answer.
        on_any_gpu: Open a ``folder`` of engines for another GPU too, to see what TensorRT says.
        read_weights: Loads the weights; by default from the bundle's files.

    Raises:
        MissingDependencyError: If there is no GPU, no driver, no cuda-python, or the TensorRT that
            built them is missing.
        InputError: If there are none for this GPU.
        ManifestError: If they are damaged, or of another version of TensorRT.
    """
    cuda = cuda or Cuda()
    target = target or current_target()
    folder = folder or _choose(bundle, target or "no GPU")
    record = EngineRecord.load(folder)
    if target not in {None, record.target} and not on_any_gpu:
        raise InputError(
            f"{folder}: engines are for {record.target}, and this GPU is {target}; "
            f"run 'longllava-trt build {bundle} --target {target}', or --backend ort"
        )
    tensorrt = tensorrt or import_tensorrt(record.flavour)
    if (tensorrt.flavour, tensorrt.version) != (record.flavour, record.tensorrt_version):
        raise ManifestError(
            f"{folder}: engines need {record.flavour} {record.tensorrt_version}, got "
            f"{tensorrt.flavour} {tensorrt.version}; install that one, or run "
            f"'longllava-trt build {bundle}'"
        )
    differences = record.differences(folder)
    if differences:
        raise ManifestError(
            f"{folder}: files differ from what was built: {'; '.join(differences)}; "
            f"run 'longllava-trt build {bundle} --force'"
        )
    return Engines(
        bundle,
        folder,
        record,
        tensorrt=tensorrt,
        cuda=cuda,
        read_weights=read_weights or _from_files,
    )


def _from_files(
    bundle: Path, weights: Sequence[EngineWeight], memory: CudaMemory, progress: Progress | None
) -> dict[str, DeviceBlock]:
    return load_weights(bundle, weights, memory, progress=progress)


def _choose(bundle: Path, target: str) -> Path:
    """Return the newest folder for an architecture."""
    targets = {folder: EngineRecord.load(folder).target for folder in engine_folders(bundle)}
    fitting = [folder for folder, its in targets.items() if its == target]
    if not fitting:
        held = ", ".join(sorted(set(targets.values()))) or "none at all"
        raise InputError(
            f"{bundle}: has engines for {held}, and this GPU is {target}; "
            f"run 'longllava-trt build {bundle} --target {target}', or --backend ort"
        )
    return max(fitting, key=lambda folder: (folder / "engine.json").stat().st_mtime)
