"""Peak memory of this process, and a limit for it."""

from __future__ import annotations

import resource
import sys

from longllava_trt.core.errors import ExportError

__all__ = ["check_memory", "peak_rss_bytes"]


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process since its start, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_memory(max_ram_gib: float | None, *, where: str) -> None:
    """Raise `ExportError` if the peak exceeds a limit; None is no limit."""
    peak = peak_rss_bytes() / 2**30
    if max_ram_gib is not None and peak > max_ram_gib:
        raise ExportError(
            f"{where}: resident memory must stay within {max_ram_gib:g} GiB, but its peak was {peak:.2f} GiB; "
            "raise --max-ram"
        )
