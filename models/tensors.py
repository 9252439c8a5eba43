"""The tensors of a model's checkpoint, by the names that its family has for them."""

from __future__ import annotations

from longllava_trt.models.parameters import Shape, parameter_shapes
from longllava_trt.models.registry import family_of
from longllava_trt.models.spec import ModelSpec

__all__ = ["expected_tensors", "tensor_names"]


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Return the shape of every tensor that the checkpoint of a model must hold, by canonical name."""
    name = family_of(spec).tensor_name
    return {name(path): shape for path, shape in parameter_shapes(spec).items()}


def tensor_names(spec: ModelSpec) -> dict[str, str]:
    """Return the canonical name of every parameter, by path."""
    name = family_of(spec).tensor_name
    return {path: name(path) for path in parameter_shapes(spec)}
