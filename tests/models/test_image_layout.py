"""Positions and rows of an image against transformers and the specification's table."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longllava_trt.models.image_layout import PatchGrid, best_resolution, image_layout
from longllava_trt.models.spec import ImageSpec

RELEASED = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""Width and height, in the order of the released files as the original reads them."""
SEED = ((672, 672), (336, 1344), (1344, 336))
HD = tuple((224 * w, 224 * h) for w in range(1, 7) for h in range(1, 7) if h * w <= 6)
GRID = PatchGrid(image_size=336, side=24)
HD_GRID = PatchGrid(image_size=224, side=16)
# pinpoints of transformers' files are [height, width], the same list: their order is another one
TRANSFORMERS = tuple((width, height) for height, width in RELEASED)


def anyres(pinpoints: tuple[tuple[int, int], ...], merge: Any = "spatial_unpad") -> ImageSpec:
    return ImageSpec(aspect_ratio="anyres", pinpoints=pinpoints, merge=merge)


def table(pinpoints: Any, grid: PatchGrid, text: str) -> list[Any]:
    rows = re.findall(r"(\d+)x(\d+) (\d+)", text)
    return [
        pytest.param(pinpoints, grid, (int(w), int(h)), int(count), id=f"{w}x{h}-{count}")
        for w, h, count in rows
    ]


@pytest.mark.parametrize(
    ("pinpoints", "grid", "size", "count"),
    [
        *table(
            TRANSFORMERS,
            GRID,
            "336x336 1176 640x480 2340 480x640 2352 1000x1000 2928 1024x256 1890 300x1200 1944 1x1 1176 "
            "5000x20 576 672x672 2928 333x777 1976 450x224 1752 1920x1080 1948",
        ),
        *table(SEED, GRID, "640x480 2340 1024x256 2904 300x1200 2976 1920x1080 1948"),
        *table(
            HD,
            HD_GRID,
            "224x224 528 448x448 1312 640x480 1632 480x640 1642 1024x256 1296 450x224 784 1920x1080 1628 "
            "1x1 528",
        ),
    ],
)
def test_positions_of_the_specification(
    pinpoints: Any, grid: PatchGrid, size: tuple[int, int], count: int
) -> None:
    layout = image_layout(anyres(pinpoints), size, grid)
    assert layout.num_positions == count
    assert layout.order is not None
    assert layout.order.shape == (count,)


@pytest.fixture(scope="module")
def counted() -> Callable[[int, int], int]:
    module = pytest.importorskip("transformers.models.llava_next.processing_llava_next")
    processor = object.__new__(module.LlavaNextProcessor)
    processor.patch_size, processor.vision_feature_select_strategy = 14, "default"
    processor.num_additional_image_tokens = 1
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=[list(p) for p in RELEASED])

    def count(width: int, height: int) -> int:
        # with the class token, which its caller takes away
        return int(processor._get_number_of_features(height, width, 336, 336)) - 1

    return count


@settings(max_examples=2000, deadline=None)
@given(width=st.integers(1, 6000), height=st.integers(1, 6000))
@example(width=5000, height=20)
@example(width=1, height=6000)
def test_positions_equal_those_that_transformers_counts(
    counted: Callable[[int, int], int], width: int, height: int
) -> None:
    layout = image_layout(anyres(TRANSFORMERS), (width, height), GRID)
    assert layout.num_positions == counted(width, height)


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_rows_are_those_that_transformers_packs(width: int, height: int) -> None:
    torch = pytest.importorskip("torch")
    modeling: Any = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    side = 3
    grid = PatchGrid(image_size=10, side=side)
    pinpoints = ((20, 10), (10, 20), (20, 20), (30, 10))
    layout = image_layout(anyres(pinpoints), (width, height), grid)
    assert layout.order is not None
    assert layout.canvas is not None
    columns, rows = (length // 10 for length in layout.canvas.size)
    views = torch.arange(layout.num_views * side * side).reshape(layout.num_views, side, side, 1)
    tiles = views[1:].reshape(rows, columns, side, side, 1)
    tiles = tiles.permute(4, 0, 2, 1, 3).reshape(1, rows * side, columns * side)
    kept = modeling.unpad_image(tiles, (height, width))
    newline = torch.full((1, kept.shape[1], 1), views.numel())
    packed = torch.cat([kept, newline], dim=2).flatten()
    expected = torch.cat([views[0].flatten(), packed])
    np.testing.assert_array_equal(layout.order, expected.numpy())


def test_merges_in_the_order_of_the_tiles_or_of_one_map() -> None:
    grid = PatchGrid(image_size=2, side=2)
    pinpoints = ((4, 2),)
    flat = image_layout(anyres(pinpoints, "flat"), (4, 2), grid)
    assert (flat.num_views, flat.num_positions, flat.order) == (3, 12, None)
    spatial = image_layout(anyres(pinpoints, "spatial"), (4, 2), grid)
    assert spatial.order is not None
    assert spatial.order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 6, 7, 10, 11]
    lined = image_layout(anyres(pinpoints), (4, 2), grid)
    assert lined.order is not None
    assert lined.order.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 12, 6, 7, 10, 11, 12]


def test_one_view_ends_with_a_newline_where_rows_do() -> None:
    plain = image_layout(ImageSpec(aspect_ratio="pad"), (9, 9), GRID)
    assert (plain.num_views, plain.num_positions, plain.order) == (1, 576, None)
    spec = ImageSpec(aspect_ratio="pad", merge="spatial_unpad")
    lined = image_layout(spec, (9, 9), GRID)
    assert lined.order is not None
    assert lined.order.tolist() == list(range(577))


def test_the_class_token_counts() -> None:
    grid = PatchGrid(image_size=336, side=24, extra=1)
    assert image_layout(ImageSpec(), (9, 9), grid).num_positions == 577


def test_the_order_of_pinpoints_decides_between_equals() -> None:
    # both sides are smaller than a tile: every canvas keeps all of it, two waste the same
    assert best_resolution((200, 300), RELEASED) == (336, 672)
    assert best_resolution((200, 300), TRANSFORMERS) == (672, 336)


@pytest.mark.parametrize("size", [(640, 480), (300, 1200), (1, 1), (5000, 20), (333, 777)])
def test_the_canvas_holds_the_image_in_the_middle(size: tuple[int, int]) -> None:
    layout = image_layout(anyres(RELEASED), size, GRID)
    canvas = layout.canvas
    assert canvas is not None
    assert canvas.size in RELEASED
    assert canvas.resized[0] == canvas.size[0] or canvas.resized[1] == canvas.size[1]
    for corner, inside, whole in zip(canvas.corner, canvas.resized, canvas.size, strict=True):
        assert 0 <= corner == (whole - inside) // 2
