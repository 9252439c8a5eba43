"""One implementation's row: error and time, next to the plain version's and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.oracles import relative_rms
from benchmarks.gpu.roofline import Work

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SINGLE", "attempt", "errors", "share"]

SINGLE = 2e-6
"""Relative error of float32 arithmetic; results of fewer bits may have more."""


def errors(
    results: Sequence[Tensor], twins: Sequence[Tensor], expected: Sequence[Tensor]
) -> dict[str, Any]:
    """Return the largest errors, and whether ours is within twice the plain version's.

    Args:
        results: Ours. Any shapes and float dtypes.
        twins: The plain version's, of the same shapes and dtypes.
        expected: The same in float64.
    """
    own = [relative_rms(a, e) for a, e in zip(results, expected, strict=True)]
    plain = [relative_rms(a, e) for a, e in zip(twins, expected, strict=True)]
    ok = all(a <= max(SINGLE, 2 * b) for a, b in zip(own, plain, strict=True))
    return {"ok": ok, "error": max(own), "twin_error": max(plain)}


def share(work: Work, ms: float, context: BenchContext) -> dict[str, Any]:
    """Return a time beside the least one."""
    floor, bound = work.floor(context.ceilings)
    return {"ms": ms, "roofline_ms": floor, "bound": bound, "share": floor / ms}


def attempt(case: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a case's row; if it fails, the reason, so that the next cases still run."""
    try:
        return {"case": case, **measure()}
    except Exception as err:  # noqa: BLE001 - out of memory, a refused shape, a compiler's failure: all are results
        reason = str(err).strip().splitlines() or [""]
        return {"case": case, "ok": False, "failure": f"{type(err).__name__}: {reason[0][:300]}"}
