"""Context of every step: folders, device, and the limits measured before."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.gpu.roofline import Ceilings

__all__ = ["ROWS_FILE", "BenchContext", "read_rows"]

ROWS_FILE = "rows.jsonl"
"""In the results' folder: every row as it came, so that nothing is lost however a run ends."""


@dataclass(frozen=True, kw_only=True)
class BenchContext:
    """One run of the GPU benchmarks."""

    out: Path
    is_dry: bool = False
    """Tiny sizes on the CPU: runs every line, measures nothing."""
    library: Path | None = None
    """liblongllava_plugins.so for this GPU."""
    wheels: Path | None = None
    """Folder of TensorRT-RTX's wheels."""
    bundle: Path | None = None
    """A bundle with weights and engines."""
    scale: Path | None = None
    """Folder of bundles of full size without weights, which get random ones."""
    mamba: Path | None = None
    """Unpacked source of mamba-ssm."""

    @property
    def device(self) -> str:
        """Device that tensors are put on, as PyTorch names it."""
        return "cpu" if self.is_dry else "cuda"

    @cached_property
    def ceilings(self) -> Ceilings:
        """Rates that step `gpu-info` measured in this run; without it, they are measured now."""
        found = [row for row in read_rows(self.out) if row["step"] == "gpu-info"]
        rates = {row["case"]: row["per_s"] for row in found if "per_s" in row}
        if not rates:
            from benchmarks.gpu.gpu_info import measure_ceilings

            rates = {row["case"]: row["per_s"] for row in measure_ceilings(self)}
        return Ceilings(rates["copied bytes"], rates["bf16 GEMM flops"], rates["exponentials"])

    def to_json(self) -> dict[str, Any]:
        """Return what `BenchContext.from_json` reads."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, text: str) -> BenchContext:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        held: dict[str, Any] = {k: Path(v) if isinstance(v, str) else v for k, v in raw.items()}
        return cls(**held)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows written so far; a last line that was cut off is left out."""
    path = folder / ROWS_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]
