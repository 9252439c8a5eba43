"""A figure: its median, its spread and all its samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Figure", "counted", "repeat", "table_head", "written"]

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, measured several times."""

    label: str
    """Unit in the table."""
    unit: str
    samples: tuple[float, ...]
    """Samples in the order of measurement; at least one."""

    @property
    def median(self) -> float:
        """The middle one, or half-way between the two in the middle."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        spread = {"median": self.median, "min": self.low, "max": self.high}
        return {"unit": self.unit, **spread, "samples": [*self.samples]}

    def row(self) -> str:
        """Return one line of a table: median, smallest, largest, unit."""
        numbers = "".join(f"{written(x):>11}" for x in (self.median, self.low, self.high))
        return f"{self.label:<30}{numbers}  {self.unit}"


def repeat(
    measure: Callable[[], Sample],
    *,
    warmup: int,
    repeats: int,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Sample]:
    """Return the result of each repeat of a measurement, without the first ``warmup`` ones.

    Args:
        measure: Measures once.
        warmup: Repeats that do not count.
        repeats: Those that do.
        on_done: Called with the number of repeats behind us, the first ones included, before and
            after each.
    """
    samples = []
    on_done(0)
    for done in range(1, warmup + repeats + 1):
        samples.append(measure())
        on_done(done)
    return samples[warmup:]


def counted(amount: int, unit: str) -> str:
    """Write an amount with its unit, whose plural ends in `s`: `1 image`, `10 images`."""
    return f"{amount} {unit.removesuffix('s') if amount == 1 else unit}"


def table_head(title: str) -> str:
    """Return the line above rows."""
    return f"{title:<30}" + "".join(f"{word:>11}" for word in ("median", "min", "max"))


def written(number: float) -> str:
    """Write a number with three significant digits, or all digits before the point."""
    places = max(0, 2 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{places}f}"
