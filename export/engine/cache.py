"""Reuse of engines that exist already: they are known by a digest of all they are made from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from longllava_trt.core.engine_record import ENGINE_FILE, EngineRecord, EngineStage, PluginRecord
from longllava_trt.core.errors import ManifestError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.version import __version__
from longllava_trt.export.engine.profiles import EngineLimits, engine_spec, stage_profiles
from longllava_trt.plugins_trt.registry import TensorRT

__all__ = ["stage_key", "usable_engines"]

logger = logging.getLogger(__name__)

_REVISION = 2
"""Raised when the same files become other engines, and the package's version stays."""


def stage_key(
    bundle: Path,
    manifest: Manifest,
    stage: str,
    *,
    tensorrt: TensorRT,
    target: str,
    plugins: PluginRecord,
    weights: str,
    limits: EngineLimits,
) -> str:
    """Return a digest of everything that an engine depends on.

    Raises:
        ManifestError: If a file that the engine is built from has changed since the export.
    """
    files = [manifest.stage(stage).file]
    if weights == "embedded":
        files += sorted({weight.file for weight in manifest.weights.values()})
    needed = replace(manifest, files={name: manifest.files[name] for name in files})
    problems = needed.differences(bundle, hash_up_to_bytes=1 << 26)
    if problems:
        raise ManifestError(
            f"{bundle}: {'; '.join(problems)}; fetch the file or export the bundle again"
        )
    spec = engine_spec(manifest.stage(stage).spec, limits)
    depends = {
        "longllava-trt": [__version__, _REVISION],
        "tensorrt": [tensorrt.flavour, tensorrt.version],
        "target": target,
        "plugins": plugins.sha256,
        "weights": weights,
        "files": {name: manifest.files[name].sha256 for name in files},
        "spec": asdict(spec),
        "profiles": {
            name: {tensor: asdict(shape) for tensor, shape in shapes.items()}
            for name, shapes in stage_profiles(spec, limits).items()
        },
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def usable_engines(folder: Path, plugins: PluginRecord) -> Mapping[str, EngineStage]:
    """Return the existing engines that are complete and built with the same plugins."""
    if not (folder / ENGINE_FILE).is_file():
        return {}
    try:
        record = EngineRecord.load(folder)
    except ManifestError as err:
        logger.warning("%s", err)
        return {}
    damaged = {problem.partition(":")[0] for problem in record.differences(folder)}
    if record.plugins != plugins or record.plugins.file in damaged:
        return {}
    return {name: stage for name, stage in record.stages.items() if stage.file not in damaged}
