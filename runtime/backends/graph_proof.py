"""A captured decode step is used only after it has proved itself: this is the comparison.

Some steps are taken twice without a graph and once replayed. A replay must give what the first run gave, or come as near to
it as the second did: two runs differ only where a kernel adds in no fixed order.
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
"""Even, so that double buffers end as they began; each way round is tried twice."""


def first_difference(run: Callable[[bool], Results]) -> str | None:
    """Name the first result that a replay gets wrong, None if it gets all right.

    Args:
        run: Takes `PROOF_STEPS` steps from one point and goes back to it; replays them if asked to. Its results are
            compared in their order.
    """
    first, second, replayed = (run(is_graph) for is_graph in (False, False, True))
    for name, want in first.items():
        if not _distance(replayed[name], want) <= _distance(second[name], want):
            return name
    return None


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the largest difference; NaN where either is not finite, and so never within any limit."""
    wide = a.astype(np.float64) - b.astype(np.float64)
    return float(np.abs(wide).max()) if wide.size else 0.0
