"""Comparison of two results: tolerances, comparison and report. NumPy only.

There are two relative errors: root mean square over root mean square, which shows a small bias
everywhere, and largest difference over largest magnitude, which shows one wrong element. A metric
that was not measured is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FLOAT32_MODEL",
    "FLOAT32_OPERATOR",
    "ParityReport",
    "ParityRow",
    "Tolerance",
    "TopOne",
    "compare",
    "compare_logits",
    "compare_tokens",
    "measure",
    "worst_of",
]

Status = Literal["passed", "failed", "skipped", "measured"]
_MARKS: dict[Status, str] = {"passed": "✓", "failed": "✗", "skipped": "-", "measured": "~"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest errors that still count as agreement."""

    relative_rms: float
    """Root mean square of the difference, divided by that of the expected values."""
    max_abs: float
    """Largest difference, divided by the largest expected magnitude."""


FLOAT32_MODEL = Tolerance(relative_rms=1e-4, max_abs=1e-4)
"""Layers, stages and logits: float32 sums in another order, through a whole model. Rounding stays
near 1e-6, and a wrong term costs 1e-2 or more; the limit is far from both."""

FLOAT32_OPERATOR = Tolerance(relative_rms=1e-5, max_abs=1e-5)
"""One operator on given inputs, and one backend compared with itself: only the order of sums can
differ, a few units of 6e-8; so a term in half precision (5e-4) or a poor exp (1e-4) is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOne:
    """Agreement of the largest logits."""

    rows: int
    agreeing: int
    near_ties: int
    """Rows whose margin is so small that errors within the tolerance could change the token.

    They are shown, but they still must agree.
    """
    smallest_margin: float
    """Smallest distance, over all rows, between the best and the second-best expected logit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """One comparison."""

    name: str
    status: Status
    tolerance: Tolerance | None = None
    shape: tuple[int, ...] | None = None
    relative_rms: float | None = None
    max_abs: float | None = None
    """Largest difference, divided by the largest expected magnitude."""
    top_one: TopOne | None = None
    problem: str | None = None
    """Reason of a failure."""
    note: str | None = None
    """More that a reader must know, such as why it was skipped."""

    @classmethod
    def skipped(cls, name: str, reason: str) -> ParityRow:
        """Return the row of a comparison that could not be made."""
        return cls(name=name, status="skipped", note=reason)

    def line(self, width: int = 0) -> str:
        """Return the row as one line, its name padded to ``width``."""
        parts = list(self._errors())
        if self.top_one is not None:
            top = self.top_one
            parts.append(f"argmax {top.agreeing}/{top.rows}")
            parts.append(f"{top.near_ties} near ties (smallest margin {top.smallest_margin:.1e})")
        parts += [text for text in (self.problem, self.note) if text]
        return f"[{_MARKS[self.status]}] {self.name:<{width}}  {', '.join(parts)}".rstrip()

    def _errors(self) -> Iterable[str]:
        limits = self.tolerance
        for what, value, limit in (
            ("rel rms", self.relative_rms, limits and limits.relative_rms),
            ("max", self.max_abs, limits and limits.max_abs),
        ):
            if value is not None:
                yield f"{what} {value:.1e}" + (f" (limit {limit:.0e})" if limit else "")


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Comparisons, in the order in which they were made."""

    rows: tuple[ParityRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether something was compared and nothing failed."""
        statuses = {row.status for row in self.rows}
        return "passed" in statuses and "failed" not in statuses

    @property
    def failures(self) -> tuple[ParityRow, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.status == "failed")

    def __add__(self, other: ParityReport) -> ParityReport:
        return ParityReport(self.rows + other.rows)

    def lines(self) -> list[str]:
        """Return one line for each row."""
        width = max((len(row.name) for row in self.rows), default=0)
        return [row.line(width) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return all data in JSON types."""
        return {"passed": self.passed, "rows": [asdict(row) for row in self.rows]}


def compare(
    name: str, actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance
) -> ParityRow:
    """Compare two arrays: shapes, dtypes, finiteness, then errors; nothing is broadcast.

    Args:
        name: Name of the row.
        actual: Array to check, of any shape and dtype.
        expected: Array of the same shape and dtype. If it is all zeros, ``actual`` must be too.
        tolerance: Largest errors allowed.
    """
    blank = ParityRow(
        name=name, status="failed", tolerance=tolerance, shape=tuple(map(int, expected.shape))
    )
    problem = _incomparable(actual, expected)
    if problem:
        return replace(blank, problem=problem)
    want = expected.astype(np.float64)
    difference = actual.astype(np.float64) - want
    largest, scale = float(np.abs(difference).max()), float(np.abs(want).max())
    if scale == 0:
        if largest == 0:
            return replace(blank, status="passed", relative_rms=0.0, max_abs=0.0)
        return replace(blank, problem=f"must be all zeros, got magnitudes up to {largest:.1e}")
    relative_rms = _rms(difference / scale) / _rms(want / scale)
    max_abs = largest / scale
    within = relative_rms <= tolerance.relative_rms and max_abs <= tolerance.max_abs
    return replace(
        blank,
        status="passed" if within else "failed",
        relative_rms=relative_rms,
        max_abs=max_abs,
        problem=None if within else "error above its limit",
    )


def measure(name: str, actual: NDArray[Any], expected: NDArray[Any]) -> ParityRow:
    """Return the errors between two arrays, of one shape and dtype, that need not agree.

    Arrays that `compare` cannot compare still fail.
    """
    row = compare(name, actual, expected, Tolerance(relative_rms=math.inf, max_abs=math.inf))
    return replace(row, status="measured", tolerance=None) if row.status == "passed" else row


def compare_logits(
    name: str, actual: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance
) -> ParityRow:
    """Compare logits [..., vocab_size], of one float dtype, and the token that each row prefers.

    A row that prefers another token fails, even at a near tie: the margin of such a row is never
    larger than the errors of its two logits, so a rule "within the error" would accept all of them.
    """
    row = compare(name, actual, expected, tolerance)
    if row.max_abs is None:
        return row
    want = expected.astype(np.float64).reshape(-1, expected.shape[-1])
    got = actual.reshape(want.shape)
    best, chosen = want.argmax(-1), got.argmax(-1)
    upper = np.partition(want, -2, axis=-1)[:, -2:]
    margins = upper[:, 1] - upper[:, 0]
    top_one = TopOne(
        rows=len(want),
        agreeing=int((best == chosen).sum()),
        near_ties=int((margins <= 2 * tolerance.max_abs * np.abs(want).max()).sum()),
        smallest_margin=float(margins.min()),
    )
    flips = np.flatnonzero(best != chosen)
    if not len(flips):
        return replace(row, top_one=top_one)
    first = int(flips[0])
    problem = (
        f"row {first} prefers token {chosen[first]}, expected {best[first]} "
        f"(margin {want[first, best[first]] - want[first, chosen[first]]:.1e})"
    )
    both = f"{row.problem}; {problem}" if row.problem else problem
    return replace(row, status="failed", top_one=top_one, problem=both)


def compare_tokens(
    name: str, actual: Sequence[int], expected: Sequence[int], *, logits: NDArray[Any]
) -> ParityRow:
    """Compare generated tokens, which must be identical.

    Args:
        name: Name of the row.
        actual: Tokens to check.
        expected: Tokens that are right.
        logits: Logits of each expected token. [len(expected), vocab_size], float.
    """
    row = ParityRow(name=name, status="failed", shape=(len(expected),))
    if not expected:
        return replace(row, problem="nothing to compare")
    same = 0
    while same < min(len(actual), len(expected)) and actual[same] == expected[same]:
        same += 1
    count = f"{same} of {len(expected)} tokens identical"
    if same == len(expected) == len(actual):
        return replace(row, status="passed", note=count)
    if same == min(len(actual), len(expected)):
        return replace(row, problem=f"{count}, then got {len(actual)} tokens in all")
    margin = float(logits[same, expected[same]]) - float(logits[same, actual[same]])
    problem = (
        f"{count}, then {actual[same]} in place of {expected[same]} "
        f"(margin {margin:.1e} among logits up to {np.abs(logits[same]).max():.1e})"
    )
    return replace(row, problem=problem)


def worst_of(name: str, rows: Sequence[ParityRow]) -> ParityRow:
    """Return the row that is furthest from passing, under another name."""
    if not rows:
        return ParityRow(name=name, status="failed", problem="nothing to compare")
    worst = max(rows, key=_badness)
    return replace(worst, name=name, note=f"worst of {len(rows)}: {worst.name}")


def _badness(row: ParityRow) -> tuple[bool, bool, float]:
    unmeasured = row.relative_rms is None
    return row.status == "failed", unmeasured, row.relative_rms or 0.0


def _incomparable(actual: NDArray[Any], expected: NDArray[Any]) -> str | None:
    """Return the reason why two arrays cannot be compared by numbers, or None."""
    if actual.shape != expected.shape:
        return f"shape must be {list(expected.shape)}, got {list(actual.shape)}"
    if actual.dtype != expected.dtype:
        return f"dtype must be {expected.dtype}, got {actual.dtype}"
    if not expected.size:
        return "nothing to compare"
    for what, array in (("expected", expected), ("actual", actual)):
        wrong = int((~np.isfinite(array)).sum())
        if wrong:
            return f"{wrong} of {array.size} {what} values are NaN or infinite"
    return None


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean()))
