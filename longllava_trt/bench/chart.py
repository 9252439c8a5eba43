"""Time and memory against images as a picture, drawn with Pillow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from PIL import Image, ImageDraw, ImageFont

from longllava_trt.bench.end_to_end import AnswerFigures
from longllava_trt.bench.figure import Figure
from longllava_trt.bench.report import BenchReport
from longllava_trt.core.errors import InputError

__all__ = ["Panel", "check_target", "draw_chart", "panels", "save_chart", "ticks"]

_WIDTH, _HEIGHT = 1400, 420
"""Of one panel, margins included."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 130, 380, 60, 80
"""Margins of a panel; the legend stands in the right one."""
_HEAD = 90
_INK, _GRID, _PAPER = (32, 32, 32), (222, 222, 222), (255, 255, 255)
_COLOURS = ((31, 90, 160), (214, 110, 20), (50, 140, 70), (190, 50, 60), (125, 80, 165))
_MOST_TICKS = 6

Point = tuple[float, float]


class Line(NamedTuple):
    """One quantity against images."""

    name: str
    points: tuple[tuple[int, Figure], ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes, both from 0."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    top: int
    """Of its margins, in pixels from the picture's."""

    @property
    def x_ticks(self) -> tuple[float, ...]:
        """Numbers of images that are marked; the axis ends at the last."""
        return ticks(max(x for line in self.lines for x, _ in line.points), whole=True)

    @property
    def y_ticks(self) -> tuple[float, ...]:
        """The same upwards."""
        return ticks(max(figure.high for line in self.lines for _, figure in line.points))

    def at(self, x: float, y: float) -> Point:
        """Return where a value lies in the picture, in pixels."""
        across = (_WIDTH - _LEFT - _RIGHT) * x / self.x_ticks[-1]
        up = (_HEIGHT - _TOP - _BOTTOM) * y / self.y_ticks[-1]
        return _LEFT + across, self.top + _HEIGHT - _BOTTOM - up


def ticks(most: float, *, whole: bool = False) -> tuple[float, ...]:
    """Return round numbers from 0 to the first that is no less than ``most``, at even distances of 1, 2 or 5."""
    if most <= 0:
        return 0.0, 1.0
    decade = 10.0 ** math.floor(math.log10(most / _MOST_TICKS))
    steps = (decade * factor for factor in (1, 2, 5, 10, 20))
    step = next(s for s in steps if most / s <= _MOST_TICKS and (s >= 1 or not whole))
    return tuple(step * i for i in range(math.ceil(most / step) + 1))


def panels(answers: Sequence[AnswerFigures]) -> tuple[Panel, ...]:
    """Return what is drawn: the time to the first token, that of a later token, and memory."""
    stages = {
        "decoder, prefill": "prefill",
        "vision": "vision",
        "projector": "projector",
        "image decoding, over threads": "decode_image",
    }
    first = [_line(n, answers, partial(AnswerFigures.seconds, stage=s)) for n, s in stages.items()]
    first.append(_line("first token", answers, lambda a: a.figures["first_token_s"]))
    memory = _line("peak resident", answers, lambda a: a.figures["peak_resident_mb"])
    later = _line("each later token", answers, lambda a: a.token_ms)
    content = (
        ("time to the first token, and its stages", "s", tuple(first)),
        ("time of each later token", "ms", (later,)),
        ("memory", "MB", (memory,)),
    )
    return tuple(
        Panel(title, unit, lines, top=_HEAD + number * _HEIGHT)
        for number, (title, unit, lines) in enumerate(content)
    )


def draw_chart(report: BenchReport) -> Image.Image:
    """Draw a panel below the other; whiskers reach from the smallest sample to the largest."""
    drawn = panels(report.answers)
    image = Image.new("RGB", (_WIDTH, _HEAD + _HEIGHT * len(drawn)), _PAPER)
    draw = ImageDraw.Draw(image)
    bundle, machine = report.bundle, report.machine
    title = f"{bundle['name']}, {bundle['dtype']}, {report.options.backend}"
    draw.text((20, 16), title, _INK, ImageFont.load_default(30))
    where = f"{machine['processor']}, {machine['cores']} cores; median of {report.settings.repeats}, min to max"
    draw.text((20, 56), where, _INK, ImageFont.load_default(22))
    for panel in drawn:
        _draw_axes(draw, panel)
        for place, (line, colour) in enumerate(zip(panel.lines, _COLOURS, strict=False)):
            _draw_line(draw, panel, line, colour)
            _draw_legend(draw, panel, place, line.name, colour)
    return image


def check_target(path: Path) -> None:
    """Refuse, before any work, a file that could not be written after it.

    Raises:
        InputError: If there is no such folder, or no right to write there, or the path is a folder itself.
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise InputError(
            f"--plot {path}: must be a file in a folder that exists and can be written to; choose another"
        )


def save_chart(report: BenchReport, path: Path) -> None:
    """Write the picture as PNG, whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    image = draw_chart(report)
    staging = path.with_name(f".{path.name}.{uuid4().hex[:8]}.staging")
    try:
        image.save(staging, format="PNG", optimize=True)
        staging.replace(path)
    except OSError as err:
        raise InputError(f"--plot {path}: cannot be written ({err}); choose another file") from err
    finally:
        staging.unlink(missing_ok=True)


def _line(
    name: str, answers: Sequence[AnswerFigures], figure: Callable[[AnswerFigures], Figure]
) -> Line:
    return Line(name, tuple((answer.num_images, figure(answer)) for answer in answers))


def _draw_axes(draw: ImageDraw.ImageDraw, panel: Panel) -> None:
    font = ImageFont.load_default(20)
    right, top = panel.x_ticks[-1], panel.y_ticks[-1]
    for y in panel.y_ticks:
        left_end = panel.at(0, y)
        draw.line((*left_end, *panel.at(right, y)), fill=_GRID, width=1)
        draw.text((left_end[0] - 10, left_end[1]), f"{y:,g}", _INK, font, anchor="rm")
    for x in panel.x_ticks:
        foot = panel.at(x, 0)
        draw.line((*foot, foot[0], foot[1] + 8), fill=_INK, width=2)
        draw.text((foot[0], foot[1] + 12), f"{x:,g}", _INK, font, anchor="mt")
    draw.line((*panel.at(0, top), *panel.at(0, 0), *panel.at(right, 0)), fill=_INK, width=2)
    draw.text(
        (20, panel.top + 12), f"{panel.title}, {panel.unit}", _INK, ImageFont.load_default(24)
    )
    middle = panel.at(right / 2, 0)
    draw.text((middle[0], middle[1] + 40), "images", _INK, font, anchor="mt")


def _draw_line(
    draw: ImageDraw.ImageDraw, panel: Panel, line: Line, colour: tuple[int, int, int]
) -> None:
    medians = [panel.at(x, figure.median) for x, figure in line.points]
    draw.line(medians, fill=colour, width=3, joint="curve")
    for x, figure in line.points:
        draw.line((*panel.at(x, figure.low), *panel.at(x, figure.high)), fill=colour, width=2)
    for left, top in medians:
        draw.ellipse((left - 6, top - 6, left + 6, top + 6), fill=colour)


def _draw_legend(
    draw: ImageDraw.ImageDraw, panel: Panel, place: int, name: str, colour: tuple[int, int, int]
) -> None:
    left, middle = _WIDTH - _RIGHT + 30, panel.top + _TOP + 14 + 32 * place
    draw.line((left, middle, left + 30, middle), fill=colour, width=3)
    draw.ellipse((left + 9, middle - 6, left + 21, middle + 6), fill=colour)
    draw.text((left + 42, middle), name, _INK, ImageFont.load_default(20), anchor="lm")
