"""Contents of a bundle: manifest.json, the one thing that export and runtime share.

A bundle is a folder:

    manifest.json                    this
    vision.onnx projector.onnx embed.onnx decoder.onnx
    weights/                         the checkpoint's own safetensors files, linked; and quantised experts
    config.json tokenizer.json ...   the checkpoint's own
    vision_tower/config.json         the vision tower's sizes

Graphs are in the folder of `weights/`, because ONNX Runtime opens external data only below a
model's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longllava_trt.core.byte_range import ByteRange
from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import ManifestError
from longllava_trt.core.publish import JOURNAL_FILE
from longllava_trt.core.stage_spec import STAGES, StageSpec, TensorSpec
from longllava_trt.core.weight_formats import MoeQuant

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "VISION_CONFIG_FOLDER",
    "WEIGHTS_FOLDER",
    "FileRecord",
    "Manifest",
    "QuantisationError",
    "StageRecord",
    "WeightRecord",
    "record_files",
]

FORMAT_VERSION = 1
"""Version of the format; raised when older bundles can no longer be read."""

MANIFEST_FILE = "manifest.json"
WEIGHTS_FOLDER = "weights"
VISION_CONFIG_FOLDER = "vision_tower"
"""Folder of a CLIP config.json, which export may have found elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of the bundle."""

    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRecord(ByteRange):
    """Source of one weight of the graphs."""

    file: str
    """Path in the bundle."""
    shape: tuple[int, ...]
    dtype: str
    """Dtype in the file."""
    transform: str
    """Change between file and graph.

    `none`. `cast`: the graph has a Cast to its own dtype, which runtimes fold at load. A
    `MoeQuant`: codes or scales of a layer's experts, which are not in the checkpoint.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationError:
    """Quantisation error of one kind of matrix, over all experts of a layer."""

    layer: int
    matrix: str
    """`gate`, `up` or `down`."""
    relative_rms: float
    """Root mean square of the differences, divided by that of the weights."""
    max_abs: float
    """Largest difference, divided by the largest magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage's graph."""

    file: str
    spec: StageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json."""

    dtype: str
    """Arithmetic dtype of the graphs."""
    stages: Mapping[str, StageRecord]
    weights: Mapping[str, WeightRecord]
    files: Mapping[str, FileRecord]
    """Every file of the bundle except manifest.json, by path in the bundle."""
    produced_by: Mapping[str, str]
    """Versions of the packages that made the bundle."""
    moe_quant: MoeQuant = "none"
    quantisation_errors: tuple[QuantisationError, ...] = ()
    """Empty unless experts are quantised."""
    format_version: int = FORMAT_VERSION

    def save(self, bundle: Path) -> None:
        """Write manifest.json."""
        text = json.dumps(asdict(self), indent=1, sort_keys=False)
        (bundle / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, bundle: Path) -> Manifest:
        """Read manifest.json.

        Raises:
            ManifestError: If there is none, or it was written by an incompatible version.
        """
        path = bundle / MANIFEST_FILE
        if not path.is_file():
            raise ManifestError(
                f"{bundle}: not a bundle, it has no {MANIFEST_FILE}; "
                "make one with 'longllava-trt export CHECKPOINT BUNDLE'"
            )
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw["format_version"]
            if version != FORMAT_VERSION:
                raise ManifestError(
                    f"{path}: format version must be {FORMAT_VERSION}, got {version}; export the bundle again"
                )
            return cls(
                dtype=raw["dtype"],
                stages={name: _stage_from_json(stage) for name, stage in raw["stages"].items()},
                weights={name: _weight_from_json(w) for name, w in raw["weights"].items()},
                files={name: FileRecord(**record) for name, record in raw["files"].items()},
                produced_by=raw["produced_by"],
                moe_quant=raw.get("moe_quant", "none"),
                quantisation_errors=tuple(
                    QuantisationError(**error) for error in raw.get("quantisation_errors", ())
                ),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ManifestError(
                f"{path}: damaged ({type(err).__name__}: {err}); export the bundle again"
            ) from err

    def stage(self, name: str) -> StageRecord:
        """Return one stage's record; `ManifestError` if the bundle was exported without it."""
        if name not in self.stages:
            raise ManifestError(
                f"bundle: stage '{name}' is not in it, only {', '.join(self.stages) or 'none'}; "
                f"export it again with all of {', '.join(STAGES)}"
            )
        return self.stages[name]

    def differences(self, bundle: Path, *, hash_up_to_bytes: int | None = None) -> list[str]:
        """Compare the files of a bundle with what was recorded.

        Args:
            bundle: Folder.
            hash_up_to_bytes: Compare larger files by length only; by default every file is read.

        Returns:
            One line for each file that is missing or differs.
        """
        problems = []
        hashed = []
        for name, record in self.files.items():
            path = bundle / name
            size = path.stat().st_size if path.is_file() else None
            if size != record.nbytes:
                got = "it is missing" if size is None else f"got {size}"
                problems.append(f"{name}: must have {record.nbytes} bytes, {got}")
            elif hash_up_to_bytes is None or size <= hash_up_to_bytes:
                hashed.append(name)
        for name, digest in _digests(bundle, hashed).items():
            want = self.files[name].sha256
            if digest != want:
                problems.append(f"{name}: must have sha256 {want[:16]}..., got {digest[:16]}...")
        return problems


def record_files(bundle: Path, hasher: FileHasher | None = None) -> dict[str, FileRecord]:
    """Record length and hash of every file below a bundle's folder.

    Args:
        bundle: Folder.
        hasher: Knows, or is about to know, the hashes of some of the files.
    """
    names = sorted(
        p.relative_to(bundle).as_posix()
        for p in bundle.rglob("*")
        if p.is_file() and p.name not in {MANIFEST_FILE, JOURNAL_FILE}
    )
    return {
        name: FileRecord(nbytes=(bundle / name).stat().st_size, sha256=digest)
        for name, digest in _digests(bundle, names, hasher).items()
    }


def _digests(bundle: Path, names: list[str], hasher: FileHasher | None = None) -> dict[str, str]:
    if hasher is None:
        with FileHasher() as own:
            return _digests(bundle, names, own)
    for name in names:
        hasher.start(bundle / name)
    return {name: hasher.digest(bundle / name) for name in names}


def _stage_from_json(raw: Mapping[str, Any]) -> StageRecord:
    spec = raw["spec"]
    inputs, outputs = (
        tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"]) for t in spec[key])
        for key in ("inputs", "outputs")
    )
    return StageRecord(file=raw["file"], spec=StageSpec(spec["name"], inputs, outputs))


def _weight_from_json(raw: dict[str, Any]) -> WeightRecord:
    return WeightRecord(**{**raw, "shape": tuple(raw["shape"])})
