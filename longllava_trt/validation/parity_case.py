"""Subject of a validation: a bundle, and the reference model of the checkpoint it was exported from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.safetensors_header import TensorSource
from longllava_trt.export.weights import bundled_name
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.contracts import carried_state
from longllava_trt.models.registry import CONFIG_FILE, load_decoder_spec
from longllava_trt.models.spec import DecoderSpec
from longllava_trt.reference.cache import HybridCache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.model import LongLLaVA as RuntimeLongLLaVA
from longllava_trt.validation.experts import with_dequantised_experts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["ParityCase", "array_of", "state_arrays"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """A bundle and what it must equal."""

    bundle: Path
    manifest: Manifest
    reference: LongLLaVA
    """Float32, with the experts that the bundle holds. A test may put a wrong one here."""
    original: LongLLaVA | None = None
    """With the checkpoint's experts, where the bundle's are quantised."""

    @classmethod
    def open(
        cls, bundle: Path, checkpoint: Path, *, vision_tower: Path | None = None
    ) -> ParityCase:
        """Open both, after making sure that they belong together.

        Args:
            bundle: Folder, exported with float32 arithmetic.
            checkpoint: Folder that it was exported from.
            vision_tower: Folder whose vision tower it was exported with, if not the checkpoint's own.

        Raises:
            InputError: If the bundle's dtype is another, or it was exported from another checkpoint.
            ManifestError: If the bundle is incomplete or damaged.
        """
        manifest = RuntimeLongLLaVA.from_bundle(bundle).manifest
        if manifest.dtype != "float32":
            raise InputError(
                f"{bundle}: graphs must be float32 to be validated on a CPU, got {manifest.dtype}; export again with "
                "--dtype float32 (weights stay as they are on disk)"
            )
        reference = load_model(checkpoint, vision_tower=vision_tower)
        sources = index_checkpoint(checkpoint, reference.config, vision_tower=vision_tower)
        problem = next(_config_differences(bundle, checkpoint), None) or next(
            _weight_differences(bundle, checkpoint, manifest, sources), None
        )
        if problem:
            raise InputError(
                f"{bundle}: was not exported from {checkpoint}: {problem}; name the checkpoint it was exported from"
            )
        if manifest.moe_quant == "none":
            return cls(bundle=bundle, manifest=manifest, reference=reference)
        dequantised = with_dequantised_experts(reference, bundle, manifest)
        return cls(bundle=bundle, manifest=manifest, reference=dequantised, original=reference)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's values as a contiguous array."""
    array: NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def state_arrays(cache: HybridCache, decoder: DecoderSpec) -> dict[str, NDArray[Any]]:
    """Return a reference cache by the decoder's input names; keys and values as long as what was fed."""
    tensors = (tensor for state in cache for tensor in state)
    specs = carried_state(decoder, "float32")
    return {spec.name: array_of(t) for spec, t in zip(specs, tensors, strict=True)}


def _config_differences(bundle: Path, checkpoint: Path) -> Iterator[str]:
    """Yield the keys that differ where the decoders do; most differences would show in no shape."""
    if load_decoder_spec(bundle) == load_decoder_spec(checkpoint):
        return
    ours, theirs = (
        json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        for folder in (bundle, checkpoint)
    )
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"'{name}' of config.json is {theirs.get(name)!r}, in the bundle {ours.get(name)!r}"


def _weight_differences(
    bundle: Path, checkpoint: Path, manifest: Manifest, sources: Mapping[str, TensorSource]
) -> Iterator[str]:
    """Yield weights that lie elsewhere, then files whose bytes differ."""
    files: dict[str, Path] = {}
    for name, record in manifest.weights.items():
        if record.transform == manifest.moe_quant != "none":
            # quantised experts are compared number by number
            continue
        source = sources.get(name)
        if source is None:
            yield f"it has no tensor '{name}'"
            continue
        want = (bundled_name(source), source.offset, source.nbytes, source.shape, source.dtype)
        if want != (record.file, record.offset, record.nbytes, record.shape, record.dtype):
            yield f"tensor '{name}' is stored at another place or in another shape"
        files[record.file] = checkpoint / source.file
    for name, original in files.items():
        if original.samefile(bundle / name):
            continue
        with original.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != manifest.files[name].sha256:
            yield f"the bytes of {original.name} differ"
