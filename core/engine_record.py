"""Contents of a folder of engines: engine.json, which is read to run them.

    BUNDLE/engines/sm80-trtrtx-1.7.1/
        engine.json                      this
        vision.engine projector.engine embed.engine decoder.engine
        liblongllava_plugins.so          plugins, which the decoder's engine needs

For each weight that is an input of an engine, engine.json lists its bytes in the bundle's files, so
that a loader needs neither ONNX nor the bundle's manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from longllava_trt.core.byte_range import ByteRange
from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import ManifestError
from longllava_trt.core.kernel_record import ProfileKernels
from longllava_trt.core.stage_spec import TensorSpec

__all__ = [
    "ENGINES_FOLDER",
    "ENGINE_FILE",
    "ENGINE_FORMAT_VERSION",
    "EngineRecord",
    "EngineStage",
    "EngineWeight",
    "PluginRecord",
    "ShapeRange",
    "StateBinding",
    "WeightPart",
    "engine_folders",
]

ENGINES_FOLDER = "engines"
ENGINE_FILE = "engine.json"
ENGINE_FORMAT_VERSION = 2
"""Version of the format; raised when something is added, or older engines can no longer be run."""
_READABLE = (1, ENGINE_FORMAT_VERSION)
"""Versions that can be read; version 1 has no kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPart(ByteRange):
    """Bytes of one of the bundle's weight files."""

    file: str
    """Path in the bundle."""
    name: str
    """Name in the checkpoint."""
    dtype: str
    """Dtype in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWeight:
    """A weight that is an input of an engine.

    Its content is the content of its parts, one after another, each cast to `dtype`. Experts are
    stacked, and gate and up joined, along the first axis, so in memory they follow each other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[WeightPart, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes that one optimization profile allows for one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBinding:
    """Buffers that carry one state from an output to the next call's input."""

    input: str
    output: str
    mode: Literal["alias", "double-buffer"]
    """`alias`: one buffer for both, written in place. `double-buffer`: two that take turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStage:
    """One engine."""

    file: str
    nbytes: int
    sha256: str
    key: str
    """Digest of everything that the engine was built from."""
    graph_sha256: str
    inputs: tuple[TensorSpec, ...]
    """Inputs and outputs, without weights. `capacity` and `batch` are numbers here."""
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, Mapping[str, ShapeRange]]
    """Profiles by name, in the engine's order; each has the inputs whose shape may vary."""
    weights: tuple[EngineWeight, ...]
    """Weights in the order of the engine's inputs; none if they are inside the engine."""
    states: tuple[StateBinding, ...]
    num_layers: int
    """Layers of the parsed network, before TensorRT fuses them."""
    plugins: Mapping[str, int]
    """Plugin layers by name."""
    attention: Mapping[str, str]
    """By node: `fused`, or `decomposable` if TensorRT may split it into several layers."""
    seconds: float
    peak_rss_bytes: int
    """Largest resident set of the build process until the engine was built."""
    kernels: Mapping[str, ProfileKernels] = field(default_factory=dict)
    """Kernels that TensorRT made, by profile; empty if TensorRT did not report them, and in
    files of version 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """The plugin library that the engines were built with."""

    file: str
    nbytes: int
    sha256: str
    versions: Mapping[str, str]
    """Version of each creator, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The content of engine.json."""

    target: str
    """Architecture of the GPU, such as `sm80`."""
    flavour: str
    """`tensorrt` or `tensorrt-rtx`."""
    tensorrt_version: str
    dtype: str
    plugins: PluginRecord
    stages: Mapping[str, EngineStage]
    options: Mapping[str, Any]
    """Limits and options of the last build of the stages."""
    format_version: int = ENGINE_FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write engine.json."""
        bare = {name: replace(stage, kernels={}) for name, stage in self.stages.items()}
        document = asdict(replace(self, stages=bare, format_version=ENGINE_FORMAT_VERSION))
        for name, stage in self.stages.items():
            kernels = {profile: found.to_json() for profile, found in stage.kernels.items()}
            document["stages"][name]["kernels"] = kernels
        text = json.dumps(document, indent=1)
        (folder / ENGINE_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> EngineRecord:
        """Read engine.json.

        Raises:
            ManifestError: If it is missing, or an incompatible version wrote it.
        """
        path = folder / ENGINE_FILE
        if not path.is_file():
            raise ManifestError(
                f"{folder}: holds no engines, it has no {ENGINE_FILE}; "
                "make them with 'longllava-trt build BUNDLE'"
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw["format_version"]
            if version not in _READABLE:
                raise ManifestError(
                    f"{path}: format version must be {' or '.join(map(str, _READABLE))}, "
                    f"got {version}; build the engines again"
                )
            stages = {name: _stage_from_json(stage) for name, stage in raw["stages"].items()}
            return cls(**{**raw, "plugins": PluginRecord(**raw["plugins"]), "stages": stages})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ManifestError(
                f"{path}: damaged ({type(err).__name__}: {err}); build the engines again"
            ) from err

    def differences(self, folder: Path) -> list[str]:
        """Compare engines and plugin library with the record; return a line per difference."""
        records: list[PluginRecord | EngineStage] = [self.plugins, *self.stages.values()]
        with FileHasher() as hasher:
            found = [_difference(folder / r.file, r.nbytes, r.sha256, hasher) for r in records]
        return [problem for problem in found if problem]


def engine_folders(bundle: Path) -> Iterator[Path]:
    """Yield the folders of engines that a bundle has, by name."""
    for path in sorted((bundle / ENGINES_FOLDER).glob(f"*/{ENGINE_FILE}")):
        # a folder that is being written begins with a dot
        if not path.parent.name.startswith("."):
            yield path.parent


def _difference(path: Path, nbytes: int, sha256: str, hasher: FileHasher) -> str | None:
    size = path.stat().st_size if path.is_file() else None
    if size != nbytes:
        got = "it is missing" if size is None else f"got {size}"
        return f"{path.name}: must have {nbytes} bytes, {got}"
    digest = hasher.digest(path)
    if digest != sha256:
        return f"{path.name}: must have sha256 {sha256[:16]}..., got {digest[:16]}..."
    return None


def _stage_from_json(raw: Mapping[str, Any]) -> EngineStage:
    return EngineStage(
        **{
            **raw,
            "inputs": tuple(map(_tensor_from_json, raw["inputs"])),
            "outputs": tuple(map(_tensor_from_json, raw["outputs"])),
            "profiles": {
                name: {tensor: _range_from_json(r) for tensor, r in profile.items()}
                for name, profile in raw["profiles"].items()
            },
            "weights": tuple(map(_weight_from_json, raw["weights"])),
            "states": tuple(StateBinding(**state) for state in raw["states"]),
            "kernels": {
                name: ProfileKernels.from_json(found)
                for name, found in raw.get("kernels", {}).items()
            },
        }
    )


def _tensor_from_json(raw: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(raw["name"], tuple(raw["shape"]), raw["dtype"])


def _range_from_json(raw: Mapping[str, list[int]]) -> ShapeRange:
    return ShapeRange(*(tuple(raw[end]) for end in ("min", "opt", "max")))


def _weight_from_json(raw: Mapping[str, Any]) -> EngineWeight:
    parts = tuple(WeightPart(**part) for part in raw["parts"])
    return EngineWeight(**{**raw, "shape": tuple(raw["shape"]), "parts": parts})
