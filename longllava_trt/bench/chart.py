"""Picture of time and memory against images, drawn with matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from longllava_trt.bench.end_to_end import AnswerFigures
from longllava_trt.bench.figure import Figure
from longllava_trt.bench.report import BenchReport
from longllava_trt.core.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["check_target", "draw_chart", "panels", "save_chart"]

_SIZE_INCHES = (9.0, 11.0)
_DPI = 150
_STAGES = {
    "decoder, prefill": "prefill",
    "vision": "vision",
    "projector": "projector",
}
"""Labels of the stages that add up to the first token. Threads decode images at the same time."""


class Line(NamedTuple):
    """One quantity against images."""

    name: str
    points: tuple[tuple[int, Figure], ...]

    @property
    def drawable(self) -> tuple[tuple[int, Figure], ...]:
        """Points above 0, for a logarithmic axis: a stage that did not run took no time."""
        return tuple((images, figure) for images, figure in self.points if figure.low > 0)


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    is_logarithmic: bool = False
    """Upwards; otherwise from 0."""


def panels(answers: Sequence[AnswerFigures]) -> tuple[Panel, ...]:
    """Return the panels: time to the first token, that of a later token, and memory."""
    first = [_line("first token", answers, lambda a: a.figures["first_token_s"])]
    first += [
        _line(name, answers, partial(AnswerFigures.seconds, stage=stage))
        for name, stage in _STAGES.items()
    ]
    later = _line("each later token", answers, lambda a: a.token_ms)
    memory = _line("peak resident", answers, lambda a: a.figures["peak_resident_mb"])
    return (
        Panel("time to the first token, and its stages", "s", tuple(first), is_logarithmic=True),
        Panel("time of each later token", "ms", (later,)),
        Panel("memory", "MB", (memory,)),
    )


def draw_chart(report: BenchReport) -> Drawing:
    """Draw one panel below the other; whiskers reach from the smallest sample to the largest."""
    from matplotlib.figure import Figure as Drawing

    drawn = panels(report.answers)
    drawing = Drawing(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    bundle, machine = report.bundle, report.machine
    drawing.suptitle(
        f"{bundle['name']}, {bundle['dtype']}, {report.options.backend}\n"
        f"{machine['processor']}, {machine['cores']} cores; "
        f"median of {report.settings.repeats}, min to max",
        fontsize="medium",
    )
    axes = drawing.subplots(len(drawn), squeeze=False)[:, 0]
    counts = [answer.num_images for answer in report.answers]
    for panel, place in zip(drawn, axes, strict=True):
        _draw_panel(place, panel, counts)
    return drawing


def check_target(path: Path) -> None:
    """Raise an error, before any work, if the file could not be written after it.

    Raises:
        InputError: If there is no such folder, or no right to write there, or the path is a folder
            itself.
        MissingDependencyError: If matplotlib is not installed.
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise InputError(
            f"--plot {path}: must be a file in a folder that exists and can be written to; choose another"
        )
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "'matplotlib' is not installed; --plot needs the 'plot' extra: pip install 'longllava-trt[plot]'"
        )


def save_chart(report: BenchReport, path: Path) -> None:
    """Write the picture as PNG, whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    drawing = draw_chart(report)
    staging = path.with_name(f".{path.name}.{uuid4().hex[:8]}.staging")
    try:
        drawing.savefig(staging, format="png")
        staging.replace(path)
    except OSError as err:
        raise InputError(f"--plot {path}: cannot be written ({err}); choose another file") from err
    finally:
        staging.unlink(missing_ok=True)


def _line(
    name: str, answers: Sequence[AnswerFigures], figure: Callable[[AnswerFigures], Figure]
) -> Line:
    return Line(name, tuple((answer.num_images, figure(answer)) for answer in answers))


def _draw_panel(axes: Axes, panel: Panel, counts: Sequence[int]) -> None:
    axes.set_title(f"{panel.title}, {panel.unit}", loc="left")
    # logarithmic from 1 image on, and 0 images have a place too
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(counts, labels=[f"{count:,}" for count in counts])
    axes.set_xlabel("images")
    axes.grid(visible=True, which="both", alpha=0.25)
    for line in panel.lines:
        _draw_line(axes, line)
    _scale(axes, [figure for line in panel.lines for _, figure in line.drawable], panel)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _scale(axes: Axes, figures: Sequence[Figure], panel: Panel) -> None:
    """Set the vertical axis: whole decades, or from 0."""
    highest = max((figure.high for figure in figures), default=1.0)
    if panel.is_logarithmic and figures:
        lowest = min(figure.low for figure in figures)
        axes.set_yscale("log")
        axes.set_ylim(
            10.0 ** math.floor(math.log10(lowest)), 10.0 ** math.ceil(math.log10(highest * 1.01))
        )
    else:
        axes.set_ylim(0, highest * 1.2)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")


def _draw_line(axes: Axes, line: Line) -> None:
    if not line.drawable:
        return
    images = [count for count, _ in line.drawable]
    figures = [figure for _, figure in line.drawable]
    medians = [figure.median for figure in figures]
    below = [figure.median - figure.low for figure in figures]
    above = [figure.high - figure.median for figure in figures]
    axes.errorbar(
        images, medians, yerr=[below, above], label=line.name, marker="o", capsize=3, clip_on=False
    )
