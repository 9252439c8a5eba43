"""Options of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from longllava_trt.core.dtypes import FLOAT_NAMES
from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import STAGES
from longllava_trt.core.weight_formats import MOE_QUANTS, MoeQuant
from longllava_trt.export.weights import WeightsMode

__all__ = ["DTYPE_CHOICES", "ExportOptions"]

DTYPE_CHOICES: tuple[str, ...] = ("auto", *FLOAT_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    dtype: str = "auto"
    """Arithmetic dtype of the graphs; `auto` is the dtype of the checkpoint's decoder."""
    stages: Sequence[str] = STAGES
    """Stages to export; by default every stage of the model."""
    weights: WeightsMode = "auto"
    """Way to put the checkpoint's files into the bundle; see `place_weight_files`."""
    vision_tower: Path | None = None
    """Folder of a CLIP checkpoint to use instead of the copy in the checkpoint."""
    moe_quant: MoeQuant = "none"
    """Format of the experts of routed layers; other weights are not changed. It has no effect
    without the decoder's stage."""
    max_ram_gib: float | None = None
    """Memory limit: the export fails if this process takes more."""

    def __post_init__(self) -> None:
        """Raise an error for a value that is not supported.

        Raises:
            InputError: If a value is unknown or out of range.
        """
        unknown = sorted(set(self.stages) - set(STAGES))
        if unknown or not self.stages:
            raise InputError(
                f"export: stages must be among {', '.join(STAGES)}, got {', '.join(unknown) or 'none'}"
            )
        for name, known in (
            ("dtype", DTYPE_CHOICES),
            ("weights", get_args(WeightsMode)),
            ("moe_quant", MOE_QUANTS),
        ):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"export: {name} must be one of {', '.join(known)}, got '{value}'")
        if self.max_ram_gib is not None and not self.max_ram_gib > 0:
            raise InputError(f"export: max_ram_gib must be above 0, got {self.max_ram_gib}")
