"""Inputs and outputs of a bundle's stage: names, shapes and dtypes.

Dims are integers or dim names: `batch`, `seq_len`, `capacity` (positions the KV cache has room
for), `num_images`.
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
    """Sizes. A string is a dim name: any positive size, but one size within one call."""
    dtype: str
    """Numpy's name of the element type, or `bfloat16`."""

    def check(
        self, shape: tuple[int, ...], dtype: str, *, dims: dict[str, int], where: str
    ) -> None:
        """Raise `ContractError` unless a tensor fits.

        Args:
            shape: The tensor's.
            dtype: The tensor's, as NumPy names it, or `bfloat16`.
            dims: Sizes by dim name so far in this call; new ones are added to it.
            where: Place that the error names.
        """
        fits = len(shape) == len(self.shape) and dtype == self.dtype
        if fits:
            for want, got in zip(self.shape, shape, strict=True):
                fits &= got == (dims.setdefault(want, got) if isinstance(want, str) else want)
        if not fits:
            bound = [dims.get(d, d) if isinstance(d, str) else d for d in self.shape]
            raise ContractError(
                f"{where}: '{self.name}' must be [{', '.join(map(str, bound))}] {self.dtype}, "
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
