"""Logging set-up and progress for a person at a terminal.

Libraries only call `logging.getLogger(__name__)` and report to a `Progress` they are given; the
command line alone calls `configure` and `terminal_progress`. Everything goes to stderr: stdout
belongs to results.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress as bars
from rich.console import Console
from rich.logging import RichHandler

__all__ = ["Progress", "ProgressEvent", "configure", "terminal_progress"]

_OURS = "longllava_trt"
"""The parent of all our loggers."""
_LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Progress of one task. Its first event has `done == 0`, its last has `done == total`."""

    task: str
    """Name of the task, in the user's words: `export decoder`."""
    done: int
    total: int | None = None
    """Number of units of the task; None while it is unknown."""
    unit: str = "steps"
    note: str = ""
    """Present part of the task, or its result: `layer 12`, `3.1 MB`."""


Progress = Callable[[ProgressEvent], None]
"""Type of the `progress` argument of a long-running function."""


def configure(verbosity: int) -> None:
    """Send log records to stderr: -1 errors, 0 also warnings, 1 a line for each stage, 2 all ours.

    For other packages, only warnings and errors are shown.
    """
    level = _LEVELS[min(max(verbosity, -1), 2) + 1]
    handler: logging.Handler = logging.StreamHandler()
    style = "%(levelname)s %(name)s: %(message)s"
    if _stderr().is_interactive:
        # the console that draws the bars, so that a record does not break a bar
        handler = RichHandler(console=_stderr(), show_time=False, show_path=False)
        style = "%(message)s"
    lowest = max(level, logging.WARNING)
    logging.basicConfig(level=lowest, format=style, handlers=[handler], force=True)
    logging.getLogger(_OURS).setLevel(level)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Yield a `Progress`: bars in a terminal, elsewhere one line for every finished task."""
    if not _stderr().is_interactive:
        yield functools.partial(_print_finished, {})
        return
    text = functools.partial(bars.TextColumn, markup=False)
    columns = (text("{task.description}"), bars.BarColumn(), text("{task.fields[state]}"))
    with bars.Progress(*columns, bars.TimeElapsedColumn(), console=_stderr()) as display:
        yield functools.partial(_draw, display, {})


def _draw(display: bars.Progress, ids: dict[str, bars.TaskID], event: ProgressEvent) -> None:
    if event.task not in ids:
        ids[event.task] = display.add_task(event.task, state="")
    count = f"{event.done}" if event.total is None else f"{event.done}/{event.total}"
    state = f"{count} {event.unit} {event.note}".rstrip()
    display.update(ids[event.task], completed=event.done, total=event.total, state=state)
    if event.done == event.total:
        del ids[event.task]


def _print_finished(started: dict[str, float], event: ProgressEvent) -> None:
    now = time.monotonic()
    seconds = now - started.setdefault(event.task, now)
    if event.done == event.total:
        del started[event.task]
        note = f", {event.note}" if event.note else ""
        line = f"{event.task}: {event.done} {event.unit}{note}, {seconds:.1f} s"
        _stderr().print(line, markup=False, highlight=False, soft_wrap=True)


@functools.cache
def _stderr() -> Console:
    return Console(stderr=True)
