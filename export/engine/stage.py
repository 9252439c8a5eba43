"""One stage of a bundle into one engine: rewritten, parsed, audited, built."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from longllava_trt.core.engine_record import EngineWeight
from longllava_trt.core.errors import ExportError, ManifestError
from longllava_trt.core.kernel_record import ProfileKernels
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.engine.audit import AuditReport, audit_network
from longllava_trt.export.engine.budgets import check_budgets
from longllava_trt.export.engine.graph import convolve_channels_last, fix_dims, rewrite_for_tensorrt
from longllava_trt.export.engine.kernels import read_kernels
from longllava_trt.export.engine.log import MessageLog, make_logger, make_monitor
from longllava_trt.export.engine.network import StageNetwork, parse_network
from longllava_trt.export.engine.profiles import EngineLimits, engine_spec, stage_profiles
from longllava_trt.export.engine.stage_facts import StageFacts, gather_facts
from longllava_trt.export.engine.target import set_target
from longllava_trt.export.engine.weights import externalize_weights
from longllava_trt.models.registry import load_bundle_spec
from longllava_trt.models.tensors import stored_paths
from longllava_trt.plugins_trt.registry import TensorRT, import_tensorrt, load_plugins

__all__ = [
    "AuditedStage",
    "BuiltStage",
    "EngineWeights",
    "build_stage",
    "load_network",
    "stage_network",
]

logger = logging.getLogger(__name__)

EngineWeights = Literal["external", "embedded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltStage:
    """An engine in memory, and its data for the record."""

    serialized_engine: Any
    """The serialised engine; supports the buffer protocol."""
    weights: tuple[EngineWeight, ...]
    audit: AuditReport
    kernels: Mapping[str, ProfileKernels]
    """Kernels by profile; empty if TensorRT does not list them."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedStage:
    """A network that was checked against its stage, ready to be built."""

    parsed: StageNetwork
    weights: tuple[EngineWeight, ...]
    """Weights that are inputs of the network."""
    audit: AuditReport
    facts: StageFacts


def build_stage(
    tensorrt: TensorRT,
    bundle: Path,
    stage: str,
    *,
    target: str,
    weights: EngineWeights,
    limits: EngineLimits,
    tell: Callable[[str], None],
) -> BuiltStage:
    """Build one engine; the plugins that it needs must be registered.

    Args:
        tensorrt: TensorRT that builds it.
        bundle: Folder with the graph.
        stage: Name of the stage.
        target: From `resolve_target`.
        weights: Whether weights are inputs of the engine or part of it.
        limits: Sizes.
        tell: Called with the name of each phase of TensorRT.

    Raises:
        ManifestError: If the graph cannot be read.
        ExportError: If TensorRT cannot parse or build it, the audit finds a fault, or its kernels
            exceed a budget.
    """
    begin = time.monotonic()
    log = make_logger(tensorrt)
    tell("parsing")
    ready = stage_network(tensorrt, bundle, stage, log=log, weights=weights, limits=limits)
    parsed, facts = ready.parsed, ready.facts
    config = _builder_config(tensorrt, parsed, target)
    _add_profiles(parsed, config, facts)
    monitor = make_monitor(tensorrt, tell)
    config.progress_monitor = monitor
    serialized_engine = parsed.builder.build_serialized_network(parsed.network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if serialized_engine is None:
        raise ExportError(f"{stage}: TensorRT cannot build for {target}: {log.last_errors()}")
    return BuiltStage(
        serialized_engine=serialized_engine,
        weights=ready.weights,
        audit=ready.audit,
        kernels=_checked_kernels(tensorrt, facts, log),
        seconds=time.monotonic() - begin,
    )


def _checked_kernels(
    tensorrt: TensorRT, facts: StageFacts, log: MessageLog
) -> Mapping[str, ProfileKernels]:
    """Return the kernels of the build in `log`, after a check of their budgets."""
    try:
        found = read_kernels(log.kernel_lines, list(facts.profiles), stage=facts.spec.name)
    except ExportError as err:
        if tensorrt.flavour == "tensorrt-rtx":
            raise
        # the log of the full TensorRT is not known; an engine is usable without this check
        logger.warning("kernels are not checked: %s", err)
        return {}
    return check_budgets(facts, found)


def stage_network(
    tensorrt: TensorRT,
    bundle: Path,
    stage: str,
    *,
    log: Any,
    weights: EngineWeights = "external",
    limits: EngineLimits | None = None,
) -> AuditedStage:
    """Return a stage's audited network and its facts; arguments as for `build_stage`."""
    limits = (limits or EngineLimits()).of_model(load_bundle_spec(bundle))
    manifest = Manifest.load(bundle)
    record = manifest.stage(stage)
    path = bundle / record.file
    model = _read_graph(path)
    stored = {i.name: tuple(i.dims) for i in model.graph.initializer if i.external_data}
    paths = stored_paths(bundle, stored)
    shapes = {paths[name]: shape for name, shape in stored.items()}
    cut = externalize_weights(model.graph, manifest.weights) if weights == "external" else ()
    convolve_channels_last(model.graph)
    rewrite_for_tensorrt(model.graph)
    fix_dims(model.graph, limits.fixed(stage))
    parsed = parse_network(tensorrt, model, log, path=path if weights == "embedded" else None)
    spec = engine_spec(record.spec, limits)
    audit = audit_network(
        tensorrt, parsed, spec=spec, inputs=cut, weights=shapes, dtype=manifest.dtype
    )
    facts = gather_facts(
        tensorrt.module,
        parsed,
        spec=spec,
        profiles=stage_profiles(spec, limits),
        dtype=manifest.dtype,
        weight_shapes=shapes,
        inputs=cut,
    )
    return AuditedStage(parsed=parsed, weights=cut, audit=audit, facts=facts)


def load_network(
    bundle: Path, stage: str, *, plugins: Path, limits: EngineLimits | None = None
) -> tuple[Any, Any, Any]:
    """Return builder, network and parser of a stage, for scripts of Polygraphy.

    Registers the plugins for the rest of the process. Uses the TensorRT that Polygraphy's variable
    POLYGRAPHY_USE_TENSORRT_RTX selects.

    Args:
        bundle: Folder with the graph.
        stage: Name of the stage.
        plugins: Plugin library.
        limits: Sizes; by default those of `longllava-trt build`.
    """
    use_rtx = os.environ.get("POLYGRAPHY_USE_TENSORRT_RTX", "0") not in {"", "0"}
    tensorrt = import_tensorrt("tensorrt-rtx" if use_rtx else "tensorrt")
    load_plugins(tensorrt, plugins)
    log = make_logger(tensorrt)
    parsed = stage_network(tensorrt, bundle, stage, log=log, limits=limits).parsed
    return parsed.builder, parsed.network, parsed.parser


def _read_graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise ManifestError(f"{path}: not an ONNX graph ({err}); export the bundle again") from err


def _builder_config(tensorrt: TensorRT, parsed: StageNetwork, target: str) -> Any:
    config = parsed.builder.create_builder_config()
    set_target(tensorrt, config, target)
    # float32 products without TF32
    config.clear_flag(tensorrt.module.BuilderFlag.TF32)
    # else TensorRT does not list the kernels that it chose
    config.profiling_verbosity = tensorrt.module.ProfilingVerbosity.DETAILED
    if tensorrt.flavour == "tensorrt-rtx":
        # else a launch might allocate memory, which no CUDA graph may; the full TensorRT has no such flag
        config.set_flag(tensorrt.module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _add_profiles(parsed: StageNetwork, config: Any, facts: StageFacts) -> None:
    for shapes in facts.profiles.values():
        profile = parsed.builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape.min, shape.opt, shape.max)
        config.add_optimization_profile(profile)
