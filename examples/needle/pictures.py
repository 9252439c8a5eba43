"""Pictures for the needle test, drawn from a generator: a sign with a mark on it, and everything else.

A sign is a white disc with a dark ring around it; a mark is one of four shapes in one of four colours on a sign. A
haystack picture may hold the same shapes in the same colours, and a sign with nothing on it, but never a mark: only
both together are one. Size, place, angle, colours and background of everything vary.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["COLOURS", "MARKS", "SHAPES", "Mark", "draw_hay", "draw_marked"]

COLOURS = {
    "red": (0.0, 0.02),
    "green": (0.36, 0.04),
    "blue": (0.61, 0.03),
    "yellow": (0.13, 0.015),
}
"""Colours of marks: hue and how far it may stray, both from 0 to 1 around the circle."""

SHAPES = ("circle", "square", "triangle", "cross")
"""Shapes of marks."""

_SIDE = (80, 113)
_MAX_CLUTTER = 4
_EMPTY_SIGN_SHARE = 0.2

Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark to be found."""

    colour: str
    shape: str

    @property
    def text(self) -> str:
        """The answer that names it."""
        return f"{self.colour} {self.shape}"


MARKS = tuple(Mark(colour, shape) for colour, shape in itertools.product(COLOURS, SHAPES))
"""All sixteen."""


def draw_hay(rng: np.random.Generator) -> Image.Image:
    """Draw a picture without a mark. RGB."""
    image = _draw_scene(rng)
    if rng.random() < _EMPTY_SIGN_SHARE:
        _draw_sign(image, rng)
    return image


def draw_marked(rng: np.random.Generator, mark: Mark) -> Image.Image:
    """Draw a picture with a mark somewhere in it. RGB."""
    image = _draw_scene(rng)
    centre, radius = _draw_sign(image, rng)
    hue, spread = COLOURS[mark.colour]
    hue += rng.uniform(-spread, spread)
    colour = _rgb(hue, rng.uniform(0.8, 1), rng.uniform(0.75, 1))
    _draw_shape(image, rng, mark.shape, centre, radius * rng.uniform(0.54, 0.62), colour)
    return image


def _draw_scene(rng: np.random.Generator) -> Image.Image:
    """Draw a background with shapes strewn over it."""
    width, height = (int(side) for side in rng.integers(*_SIDE, size=2))
    background = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    image = background(rng, width, height)
    for _ in range(rng.integers(_MAX_CLUTTER + 1)):
        shape = SHAPES[rng.integers(len(SHAPES))]
        hue, _ = list(COLOURS.values())[rng.integers(len(COLOURS))]
        if rng.random() < 0.5:
            hue = rng.random()
        colour = _rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.4, 1))
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        _draw_shape(image, rng, shape, centre, rng.uniform(0.06, 0.25) * min(image.size), colour)
    return image


def _draw_sign(image: Image.Image, rng: np.random.Generator) -> tuple[Point, float]:
    """Draw an empty sign; returns its centre and radius."""
    radius = rng.uniform(0.3, 0.42) * min(image.size)
    x, y = (rng.uniform(radius, side - radius) for side in image.size)
    ring, plate = int(rng.integers(50)), int(rng.integers(225, 256))
    ImageDraw.Draw(image).ellipse(
        (x - radius, y - radius, x + radius, y + radius),
        fill=(plate,) * 3,
        outline=(ring,) * 3,
        width=round(radius * rng.uniform(0.15, 0.22)),
    )
    return (x, y), radius


def _draw_shape(
    image: Image.Image,
    rng: np.random.Generator,
    shape: str,
    centre: Point,
    radius: float,
    colour: Colour,
) -> None:
    draw = ImageDraw.Draw(image)
    x, y = centre
    if shape == "circle":
        radius *= 0.9
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    turn = rng.uniform(-0.25, 0.25)
    outline = [
        (x + radius * r * math.cos(angle + turn), y + radius * r * math.sin(angle + turn))
        for angle, r in _OUTLINES[shape]
    ]
    draw.polygon(outline, fill=colour)


def _cross() -> list[tuple[float, float]]:
    """Return the corners of an upright cross in polar coordinates, in order."""
    arm, long = 0.3, 1.05
    corner = [(long, -arm), (long, arm), (arm, arm)]
    return [
        (math.atan2(b, a) + quarter * math.pi / 2, math.hypot(a, b))
        for quarter in range(4)
        for a, b in corner
    ]


_OUTLINES = {
    "square": [(math.pi / 4 + i * math.pi / 2, 1.1) for i in range(4)],
    "triangle": [(-math.pi / 2 + i * math.pi * 2 / 3, 1.15) for i in range(3)],
    "cross": _cross(),
}
"""Corners of each shape: angle from the right, clockwise, and distance from the centre."""


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform(0, 255, size=3)


def _plain(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    red, green, blue = (int(c) for c in _colour(rng))
    return Image.new("RGB", (width, height), (red, green, blue))


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Four colours, one a corner, blended."""
    corners = rng.integers(256, size=(2, 2, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def _clouds(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Smooth noise around a colour."""
    side = int(rng.integers(3, 9))
    noise = _colour(rng) + rng.normal(0, rng.uniform(15, 60), size=(side, side, 3))
    coarse = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _grain(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise from pixel to pixel around a colour."""
    noise = rng.normal(0, rng.uniform(10, 50), size=(height, width, 3)) + _colour(rng)
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def _stripes(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Two colours in turns, at any angle."""
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 40)
    across = np.arange(width) * math.cos(angle) + np.arange(height)[:, None] * math.sin(angle)
    which = (across / period).astype(np.int64) % 2
    return Image.fromarray(np.stack([_colour(rng), _colour(rng)]).astype(np.uint8)[which])


def _tiles(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A coarse chequered pattern of random colours."""
    side = int(rng.integers(2, 7))
    coarse = rng.integers(256, size=(side, side, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


_BACKGROUNDS = (_plain, _gradient, _clouds, _grain, _stripes, _tiles)
