"""The tensors of a model's checkpoint, by its family's names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from longllava_trt.models.family import StoredTensor
from longllava_trt.models.parameters import (
    PACKED_PARTS,
    PROJECTOR,
    VISION,
    Shape,
    decoder_parameters,
    packed_experts_path,
    parameter_shapes,
)
from longllava_trt.models.registry import family_of, load_decoder_spec, load_family
from longllava_trt.models.spec import ModelSpec

__all__ = ["expected_tensors", "stored_paths", "stored_tensors", "tensor_names"]


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Return the shape of every tensor that a model's checkpoint must have, by canonical name."""
    name = family_of(spec).tensor_name
    return {name(path): shape for path, shape in parameter_shapes(spec).items()}


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Return the canonical name of every parameter, by path."""
    name = family_of(spec).tensor_name
    return {path: name(path) for path in parameter_shapes(spec)}


def stored_tensors(
    spec: ModelSpec, checkpoint_format: str | None = None
) -> dict[str, StoredTensor]:
    """Return the tensors of a model's files by key.

    Args:
        spec: The model.
        checkpoint_format: One of its family's formats; by default the usual one.
    """
    family = family_of(spec)
    chosen = family.formats[checkpoint_format] if checkpoint_format else family.usual_format
    if chosen.stored is not None:
        return chosen.stored(spec)
    return {
        family.tensor_name(path): StoredTensor((path,), shape)
        for path, shape in parameter_shapes(spec).items()
    }


def stored_paths(bundle: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the path of each weight of a bundle by its canonical name; experts may be stacked.

    The tower's sizes are not needed: a name with the prefix of the tower or the projector keeps its
    end.

    Raises:
        ConfigError: If the bundle's config.json cannot be read.
    """
    family, decoder = load_family(bundle), load_decoder_spec(bundle)
    packed = [packed_experts_path(i, part) for i in decoder.moe_layers for part in PACKED_PARTS]
    paths = {family.tensor_name(path): path for path in (*decoder_parameters(decoder), *packed)}
    prefixes = {family.tensor_name(prefix): prefix for prefix in (VISION, PROJECTOR)}
    for name in names:
        if name not in paths:
            own = (p + name.removeprefix(q) for q, p in prefixes.items() if name.startswith(q))
            paths[name] = next(own, name)
    return {name: paths[name] for name in names}
