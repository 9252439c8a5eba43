"""Content of a checkpoint or a bundle, from headers, graphs and JSON alone; no weight is read.

Every class here becomes JSON through `dataclasses.asdict`; the command line makes it readable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from longllava_trt.core.errors import ManifestError
from longllava_trt.core.manifest import MANIFEST_FILE, Manifest
from longllava_trt.core.stage_spec import TensorSpec
from longllava_trt.core.weight_formats import QUANTISED
from longllava_trt.models.checkpoint import INDEX_FILE, index_checkpoint
from longllava_trt.models.parameters import PROJECTOR, VISION, experts_path, parameter_shapes
from longllava_trt.models.registry import load_family, load_model_spec
from longllava_trt.models.spec import DecoderSpec, ModelSpec
from longllava_trt.models.tensors import stored_paths

__all__ = [
    "BundleSummary",
    "CheckpointSummary",
    "ParameterCounts",
    "StageSummary",
    "count_parameters",
    "inspect_bundle",
    "inspect_checkpoint",
    "is_bundle",
    "layer_pattern",
]

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters of a model."""

    vision: int
    projector: int
    decoder: int
    decoder_active: int
    """Parameters of the decoder that one token uses: in each routed layer, `top_k` experts."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.vision + self.projector + self.decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSummary:
    """A checkpoint, or the config.json of one."""

    config: ModelSpec
    parameters: ParameterCounts
    num_tensors: int
    has_weights: bool
    """Whether the weights exist and match config.json; if not, counts come from config.json."""
    dtypes: Mapping[str, int]
    """Tensors of each stored dtype."""
    nbytes: int
    num_files: int
    """Weight files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One graph of a bundle."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opsets: Mapping[str, int]
    """Opset versions by domain; ONNX's own is `ai.onnx`."""
    num_nodes: int
    custom_nodes: Mapping[str, int]
    """Nodes of each operator outside ONNX's own domain, as `domain::op_type`."""
    function_bodies: tuple[str, ...]
    """Operators that the file itself defines, so that any ONNX runtime can run them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSummary:
    """A bundle."""

    format_version: int
    dtype: str
    layer_pattern: str
    parameters: ParameterCounts
    """Parameters of the exported stages only, without the vision tower's last layer."""
    stages: Mapping[str, StageSummary]
    num_weights: int
    weight_bytes: int
    stored_dtypes: Mapping[str, int]
    transforms: Mapping[str, int]
    weight_files: Mapping[str, str]
    """Kind of each file: hard link, symbolic link, or own copy."""
    nbytes: int
    """Bytes of all files, linked ones included."""
    produced_by: Mapping[str, str]


def is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle, not a checkpoint."""
    return (folder / MANIFEST_FILE).is_file()


def layer_pattern(kinds: Iterable[str], moe_layers: Iterable[int]) -> str:
    """Write the decoder's layers as letters: A attention, M Mamba, with * for routed experts."""
    routed = set(moe_layers)
    return " ".join(kind[0].upper() + "*" * (i in routed) for i, kind in enumerate(kinds))


def count_parameters(
    shapes: Mapping[str, tuple[int, ...]], decoder: DecoderSpec
) -> ParameterCounts:
    """Count by part of the model.

    Args:
        shapes: Of every parameter, by path.
        decoder: Says which experts a token does not visit.
    """
    parts = dict.fromkeys(("vision", "projector", "decoder"), 0)
    routed = {experts_path(i): experts for i, experts in decoder.moe_layers.items()}
    idle = Fraction(0)
    for path, shape in shapes.items():
        size = math.prod(shape)
        part = {VISION: "vision", PROJECTOR: "projector"}.get(
            path.partition(".")[0] + ".", "decoder"
        )
        parts[part] += size
        for prefix, experts in routed.items():
            if path.startswith(prefix):
                # the experts of a layer are all of one size
                idle += Fraction(size * (experts.num_experts - experts.top_k), experts.num_experts)
    return ParameterCounts(**parts, decoder_active=parts["decoder"] - int(idle))


def inspect_checkpoint(folder: Path, *, vision_tower: Path | None = None) -> CheckpointSummary:
    """Summarise a checkpoint; a folder with config.json alone is enough for the counts.

    Raises:
        ConfigError: If config.json is not one we can honour.
        CheckpointError: If there are weights and they are damaged, or not what config.json
            describes.
    """
    config = load_model_spec(folder, vision_tower=vision_tower)
    shapes = parameter_shapes(config)
    parameters = count_parameters(shapes, config.decoder)
    has_weights = any(
        p.suffix in _WEIGHT_SUFFIXES or p.name == INDEX_FILE for p in folder.iterdir()
    )
    sources = list(
        index_checkpoint(folder, config, vision_tower=vision_tower).values() if has_weights else ()
    )
    return CheckpointSummary(
        config=config,
        parameters=parameters,
        num_tensors=len(shapes),
        has_weights=has_weights,
        dtypes=dict(Counter(s.dtype for s in sources)),
        nbytes=sum(s.nbytes for s in sources),
        num_files=len({s.file for s in sources}),
    )


def inspect_bundle(bundle: Path) -> BundleSummary:
    """Summarise a bundle.

    Raises:
        ManifestError: If it is none, or a graph in it cannot be read.
        ConfigError: If config.json in it cannot be honoured.
    """
    manifest = Manifest.load(bundle)
    family = load_family(bundle)
    decoder = family.read_decoder(bundle)
    weights = manifest.weights.values()
    return BundleSummary(
        format_version=manifest.format_version,
        dtype=manifest.dtype,
        layer_pattern=layer_pattern(decoder.layer_kinds, decoder.moe_layers)
        if "decoder" in manifest.stages
        else "",
        parameters=count_parameters(dict(_parameter_shapes(bundle, manifest)), decoder),
        stages={name: _inspect_stage(bundle, manifest, name) for name in manifest.stages},
        num_weights=len(weights),
        weight_bytes=sum(w.nbytes for w in weights),
        stored_dtypes=dict(Counter(w.dtype for w in weights)),
        transforms=dict(Counter(w.transform for w in weights)),
        weight_files={
            name: _link_kind(bundle / name) for name in sorted({w.file for w in weights})
        },
        nbytes=sum(record.nbytes for record in manifest.files.values()),
        produced_by=manifest.produced_by,
    )


def _parameter_shapes(bundle: Path, manifest: Manifest) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield path and shape of the weights; quantised experts are one stack, without scales."""
    paths = stored_paths(bundle, manifest.weights)
    for name, record in manifest.weights.items():
        path = paths[name]
        if record.transform not in QUANTISED:
            yield path, record.shape
        elif not path.endswith("_scales"):
            *rows, columns = record.shape
            yield path, (*rows, columns * (2 if record.dtype == "uint8" else 1))


def _inspect_stage(bundle: Path, manifest: Manifest, name: str) -> StageSummary:
    import onnx
    from google.protobuf.message import DecodeError

    record = manifest.stages[name]
    try:
        model = onnx.load(bundle / record.file, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise ManifestError(
            f"{bundle / record.file}: not an ONNX graph ({err}); export the bundle again"
        ) from err
    return StageSummary(
        file=record.file,
        inputs=record.spec.inputs,
        outputs=record.spec.outputs,
        opsets={o.domain or "ai.onnx": o.version for o in model.opset_import},
        num_nodes=len(model.graph.node),
        custom_nodes=dict(
            Counter(f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain)
        ),
        function_bodies=tuple(f"{f.domain}::{f.name}" for f in model.functions),
    )


def _link_kind(path: Path) -> str:
    if not path.exists():
        return "missing"
    if path.is_symlink():
        return "symbolic link"
    return "hard link" if path.stat().st_nlink > 1 else "own copy"
