"""Peak resident memory of this process: weights, caches and Python itself.

Linux keeps the peak and lets it be set back, so that each run has its own. Elsewhere the peak is
that of the process so far.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

__all__ = ["memory_method", "peak_resident_bytes", "reset_peak"]

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> bool:
    """Reset the peak; return whether this system can do that."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Return the peak since the last reset."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_method() -> str:
    """Return a text on how it is measured here."""
    if reset_peak():
        return "VmHWM: peak resident memory of the process, set back before each run"
    return "ru_maxrss: peak resident memory of the process so far"
