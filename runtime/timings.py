"""Time of a call by stage, and progress reports while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from longllava_trt.core.logs import Progress, ProgressEvent

__all__ = ["STAGES", "ProgressReporter", "RequestMetrics", "StageTimer"]

STAGES = ("decode_image", "vision", "projector", "embed", "prefill", "decode")
"""Stages in the order in which an image passes them."""


class StageTimer:
    """Sums of seconds by stage."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, stage: str, seconds: float) -> None:
        """Add time that was measured elsewhere, such as in worker threads."""
        self._seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begin)

    def by_stage(self) -> dict[str, float]:
        """Return seconds for every stage, 0 for a stage that was not needed.

        `decode_image` is a sum over threads that work at the same time as the other stages.
        """
        return {stage: self._seconds[stage] for stage in STAGES}


class ProgressReporter:
    """Reports one task with its rate and the remaining time.

    Args:
        progress: Callback for progress events, or None.
        task: Name of the task.
        total: Number of units of the task; with 0, nothing is reported.
        unit: Name of the unit.
    """

    def __init__(self, progress: Progress | None, task: str, *, total: int, unit: str) -> None:
        self._progress = progress if total else None
        self._task = task
        self._total = total
        self._unit = unit
        self._begin = time.perf_counter()
        self._done = 0
        self._report(0, total)

    def at(self, done: int) -> None:
        """Report the number of units that are done."""
        if done != self._done:
            self._done = done
            self._report(done, self._total)

    def finish(self) -> None:
        """End the task; some units may have been skipped."""
        if self._done != self._total:
            self._report(self._done, self._done)

    def _report(self, done: int, total: int) -> None:
        if self._progress is None:
            return
        seconds = time.perf_counter() - self._begin
        note = ""
        if done and seconds:
            note = f"{done / seconds:.1f} {self._unit}/s"
            left = int(seconds * (total - done) / done)
            note += f", {left // 60}:{left % 60:02} left" if done < total else ""
        self._progress(ProgressEvent(self._task, done, total, self._unit, note))


class RequestMetrics:
    """Measurements and progress of one call.

    Args:
        progress: Callback for progress events, or None.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.timings = StageTimer()
        self.progress = progress
        self._prefill = ProgressReporter(None, "prefill", total=0, unit="tokens")
        self._begin = 0

    def expect(self, *, begin: int, end: int) -> None:
        """Set the positions that will be fed."""
        self._begin = begin
        self._prefill = ProgressReporter(self.progress, "prefill", total=end - begin, unit="tokens")

    def fed(self, positions: int) -> None:
        """Report the present number of positions of the sequence."""
        self._prefill.at(positions - self._begin)

    def finish(self) -> None:
        """End the prefill; some images may have been left out."""
        self._prefill.finish()
