"""Comparison that a captured decode step must pass before it is used.

Some steps are run twice without a graph and once as a replay. The replay must give the results of
the first run, or be as near to them as the second run is: two runs differ only where a kernel adds
in no fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Results = Mapping[str, NDArray[Any]]

__all__ = ["PROOF_STEPS", "first_difference"]

PROOF_STEPS = 4
"""Even, so that double buffers end as they began; each of the two orders is tried twice."""


def first_difference(run: Callable[[bool], Results]) -> str | None:
    """Return the name of the first result that a replay gets wrong; None if all are right.

    Args:
        run: Runs `PROOF_STEPS` steps from one point and goes back to that point; True asks for a
            replay. Results are arrays by name, of any shape and float dtype, compared in order.
    """
    first, second, replayed = (run(is_graph) for is_graph in (False, False, True))
    for name, want in first.items():
        if not _distance(replayed[name], want) <= _distance(second[name], want):
            return name
    return None


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the largest difference. NaN if either is not finite, which no limit accepts."""
    wide = a.astype(np.float64) - b.astype(np.float64)
    return float(np.abs(wide).max()) if wide.size else 0.0
