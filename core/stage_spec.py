"""What a stage of a bundle takes and gives: names, shapes and dtypes.

Dims are integers or dim names: `batch`, `seq_len`, `capacity` (positions the KV cache has room for), `num_images`.
"""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.core.errors import ContractError

__all__ = ["PAST_PREFIX", "STAGES", "StageSpec", "TensorSpec", "present_name"]

STAGES = ("vision", "projector", "embed", "decoder")
"""Stages in the order in which data passes them."""

PAST_PREFIX, _PRESENT_PREFIX = "past_key_values.", "present."


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a stage."""

    name: str
    shape: tuple[int | str, ...]
    """Sizes; a string is a dim name and stands for any positive size, the same throughout one call."""
    dtype: str
    """Numpy's name of the element type, or `bfloat16`."""

    def check(
        self, shape: tuple[int, ...], dtype: str, *, dims: dict[str, int], place: str
    ) -> None:
        """Raise `ContractError` unless a tensor fits; `dims` collects the sizes that dim names got."""
        fits = len(shape) == len(self.shape) and dtype == self.dtype
        if fits:
            for want, got in zip(self.shape, shape, strict=True):
                fits &= got == (dims.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            bound = [dims.get(d, d) if isinstance(d, str) else d for d in self.shape]
            raise ContractError(
                f"{place}: '{self.name}' must be [{', '.join(map(str, bound))}] {self.dtype}, "
                f"got [{', '.join(map(str, shape))}] {dtype}"
            )


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Inputs and outputs of one stage, in graph order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def present_name(past_name: str) -> str:
    """Return the output name of a carried-state input."""
    return _PRESENT_PREFIX + past_name.removeprefix(PAST_PREFIX)
