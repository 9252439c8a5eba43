"""A bundle's stages to engines for one kind of GPU; they appear whole or not at all."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.engine_record import (
    ENGINE_FILE,
    ENGINES_FOLDER,
    EngineRecord,
    EngineStage,
    PluginRecord,
    StateBinding,
)
from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import Progress, ProgressEvent
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.publish import atomic_directory
from longllava_trt.core.stage_spec import STAGES, StageSpec, present_name
from longllava_trt.core.weight_formats import WEIGHT_FORMATS
from longllava_trt.export.engine.cache import stage_key, usable_engines
from longllava_trt.export.engine.profiles import EngineLimits, engine_spec, stage_profiles
from longllava_trt.export.engine.stage import BuiltStage, EngineWeights, build_stage
from longllava_trt.export.engine.target import resolve_target, runs_nowhere
from longllava_trt.export.memory import peak_rss_bytes
from longllava_trt.models.registry import load_bundle_spec, load_decoder_spec
from longllava_trt.plugins_trt.registry import LIBRARY_FILE, TensorRT, import_tensorrt, load_plugins

__all__ = ["BuildOptions", "BuildReport", "build_engines"]

logger = logging.getLogger(__name__)

_CODE_FOR = {"sm89": 86, "sm121": 120}
"""Architectures that run the code of another as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Settings of a build."""

    target: str = "sm80"
    """GPU architecture, or `current`."""
    flavour: str = "auto"
    """TensorRT to build with; see `import_tensorrt`."""
    stages: tuple[str, ...] = STAGES
    weights: EngineWeights = "external"
    """`external`: engines take weights as inputs, and none is read to build them."""
    limits: EngineLimits = field(default_factory=EngineLimits)

    def __post_init__(self) -> None:
        """Raise an error for a value that is not supported."""
        unknown = sorted(set(self.stages) - set(STAGES))
        if unknown or not self.stages:
            raise InputError(
                f"build: stages must be among {', '.join(STAGES)}, got {', '.join(unknown) or 'none'}"
            )
        if self.weights not in get_args(EngineWeights):
            raise InputError(f"build: weights must be external or embedded, got '{self.weights}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Result of a build."""

    folder: Path
    record: EngineRecord
    built: tuple[str, ...]
    """Stages that were built now."""
    reused: tuple[str, ...]
    """Requested stages that existed already."""
    seconds: float
    peak_rss_bytes: int
    """Largest resident set of this process since its start."""
    runs_nowhere: str | None
    """Reason why no GPU runs these engines, if none does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Values that are the same for all stages."""

    bundle: Path
    manifest: Manifest
    options: BuildOptions
    target: str
    tensorrt: TensorRT
    plugins: PluginRecord


def build_engines(
    bundle: Path,
    options: BuildOptions,
    *,
    plugins: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build engines into `BUNDLE/engines/`, except those that are up to date.

    Args:
        bundle: From `export_bundle`.
        options: Settings of the build.
        plugins: Plugin library to build with; by default it is compiled here.
        force: Build also engines that are up to date.
        progress: Called before and after each stage, and at each phase of TensorRT.

    Raises:
        MissingDependencyError: If TensorRT, or a compiler for the plugins, is not installed.
        InputError: If an option, the target or the plugin library is not usable.
        ManifestError: If the bundle lacks a stage, or a file has changed since the export.
        ExportError: If TensorRT cannot parse or build a stage, or the audit finds a fault.
    """
    begin = time.monotonic()
    manifest = Manifest.load(bundle)
    spec = load_bundle_spec(bundle)
    options = replace(options, limits=options.limits.of_model(spec))
    if options.stages == STAGES:
        # a text model has fewer
        options = replace(options, stages=spec.stages)
    for stage in options.stages:
        manifest.stage(stage)
    tensorrt = import_tensorrt(options.flavour)
    target = resolve_target(tensorrt, options.target)
    library = plugins or _compile_plugins(target, bundle, manifest, progress)
    folder = bundle / ENGINES_FOLDER / f"{target}-{tensorrt.tag}"
    versions = load_plugins(tensorrt, library)
    job = _Job(
        bundle=bundle,
        manifest=manifest,
        options=options,
        target=target,
        tensorrt=tensorrt,
        plugins=_record_plugins(library, versions),
    )
    keys = {
        stage: stage_key(
            bundle,
            manifest,
            stage,
            tensorrt=tensorrt,
            target=target,
            plugins=job.plugins,
            weights=options.weights,
            limits=options.limits,
        )
        for stage in options.stages
    }
    kept = {} if force else usable_engines(folder, job.plugins)
    wanted = [s for s in options.stages if s not in kept or kept[s].key != keys[s]]
    if wanted:
        _build(job, folder, library, wanted=wanted, keys=keys, progress=progress)
    return BuildReport(
        folder=folder,
        record=EngineRecord.load(folder),
        built=tuple(wanted),
        reused=tuple(s for s in options.stages if s not in wanted),
        seconds=time.monotonic() - begin,
        peak_rss_bytes=peak_rss_bytes(),
        runs_nowhere=runs_nowhere(tensorrt.flavour, target),
    )


def _compile_plugins(
    target: str, bundle: Path, manifest: Manifest, progress: Progress | None
) -> Path:
    """Compile only the plugins for this bundle and target; the library is kept with the engines."""
    from longllava_trt.plugins_trt.library.build import PUBLISHED_HEADS, build_library

    layers = load_decoder_spec(bundle).attention_layers.values()
    heads = sorted({(layer.head_dim, layer.num_heads // layer.num_kv_heads) for layer in layers})
    return build_library(
        archs=[_CODE_FOR.get(target, int(target.removeprefix("sm")))],
        dtypes=[DTYPES[manifest.dtype].triton],
        weight_formats=[WEIGHT_FORMATS[manifest.moe_quant].codec],
        heads=heads or PUBLISHED_HEADS,
        progress=progress,
    ).path


def _record_plugins(library: Path, versions: Mapping[str, str]) -> PluginRecord:
    return PluginRecord(
        file=LIBRARY_FILE,
        nbytes=library.stat().st_size,
        sha256=_sha256(library),
        versions=dict(versions),
    )


def _sha256(path: Path) -> str:
    with FileHasher() as hasher:
        return hasher.digest(path)


def _build(
    job: _Job,
    folder: Path,
    library: Path,
    *,
    wanted: Sequence[str],
    keys: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Build stages, add those that can stay, and publish all of them."""
    kept = {n: s for n, s in usable_engines(folder, job.plugins).items() if n not in wanted}
    with atomic_directory(folder, overwrite=True, marker=ENGINE_FILE) as staging:
        shutil.copyfile(library, staging / LIBRARY_FILE)
        stages: dict[str, EngineStage] = dict(kept)
        for stage in kept.values():
            shutil.copyfile(folder / stage.file, staging / stage.file)
        for done, name in enumerate(wanted):
            stages[name] = _build_one(
                job, name, staging, key=keys[name], progress=progress, done=(done, len(wanted))
            )
        if progress is not None:
            progress(ProgressEvent("build", len(wanted), len(wanted), "stages"))
        EngineRecord(
            target=job.target,
            flavour=job.tensorrt.flavour,
            tensorrt_version=job.tensorrt.version,
            dtype=job.manifest.dtype,
            plugins=job.plugins,
            stages={name: stages[name] for name in STAGES if name in stages},
            options=_options(job.options),
        ).save(staging)


def _build_one(
    job: _Job,
    name: str,
    staging: Path,
    *,
    key: str,
    progress: Progress | None,
    done: tuple[int, int],
) -> EngineStage:
    def tell(phase: str) -> None:
        if progress is not None:
            progress(ProgressEvent("build", *done, "stages", f"{name}: {phase}"))

    limits = job.options.limits
    built = build_stage(
        job.tensorrt,
        job.bundle,
        name,
        target=job.target,
        weights=job.options.weights,
        limits=limits,
        tell=tell,
    )
    file = staging / f"{name}.engine"
    file.write_bytes(built.serialized_engine)
    record = _record_stage(job, name, file, key=key, built=built)
    logger.info(
        "build %s: %.1f s, %.1f MB, %d layers",
        name,
        built.seconds,
        record.nbytes / 1e6,
        record.num_layers,
    )
    return record


def _record_stage(job: _Job, name: str, file: Path, *, key: str, built: BuiltStage) -> EngineStage:
    graph = job.manifest.stage(name)
    spec = engine_spec(graph.spec, job.options.limits)
    return EngineStage(
        file=file.name,
        nbytes=file.stat().st_size,
        sha256=_sha256(file),
        key=key,
        graph_sha256=job.manifest.files[graph.file].sha256,
        inputs=spec.inputs,
        outputs=spec.outputs,
        profiles=stage_profiles(spec, job.options.limits),
        weights=built.weights,
        states=_states(spec),
        num_layers=built.audit.num_layers,
        plugins=built.audit.plugins,
        attention=built.audit.attention,
        kernels=built.kernels,
        seconds=round(built.seconds, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _states(spec: StageSpec) -> tuple[StateBinding, ...]:
    outputs = {tensor.name for tensor in spec.outputs}
    return tuple(
        StateBinding(
            input=tensor.name,
            output=present_name(tensor.name),
            # TensorRT updates a KV cache in place; other states are still read when writing begins
            mode="alias" if tensor.name.endswith((".key", ".value")) else "double-buffer",
        )
        for tensor in spec.inputs
        if present_name(tensor.name) in outputs
    )


def _options(options: BuildOptions) -> dict[str, Any]:
    return {"weights": options.weights, **asdict(options.limits)}
