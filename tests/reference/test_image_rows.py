"""Rows of images: the reference, the index lists of the runtime, and transformers agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longllava_trt.models.image_layout import PatchGrid, image_layout
from longllava_trt.models.spec import ImageSpec
from longllava_trt.reference.image_rows import merge_views

SIDE, WIDTH = 4, 3
GRID = PatchGrid(image_size=8, side=SIDE)
PINPOINTS = ((8, 16), (16, 8), (16, 16), (24, 8))


def anyres(merge: Any) -> ImageSpec:
    return ImageSpec(aspect_ratio="anyres", pinpoints=PINPOINTS, merge=merge)


def merged(merge: str, size: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Return the rows as the reference joins them, views and newline."""
    layout = image_layout(anyres(merge), size, GRID)
    assert layout.canvas is not None
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(layout.num_views, SIDE**2, WIDTH, generator=generator)
    newline = torch.randn(WIDTH, generator=generator)
    tiles = layout.canvas.size[1] // 8, layout.canvas.size[0] // 8
    ending = newline if merge == "spatial_unpad" else None
    return merge_views(views, tiles, size, ending, is_map=merge != "flat"), views, newline


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
@settings(max_examples=150, deadline=None)
@given(size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
def test_the_index_lists_give_the_rows_of_the_reference(merge: str, size: tuple[int, int]) -> None:
    rows, views, newline = merged(merge, size)
    layout = image_layout(anyres(merge), size, GRID)
    np.testing.assert_array_equal(layout.arrange(views.numpy(), newline.numpy()), rows.numpy())
    assert len(rows) == layout.num_positions


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 900), (900, 1), (8, 8), (333, 777)])
def test_the_reference_packs_as_transformers_does(size: tuple[int, int]) -> None:
    modeling: Any = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    rows, views, newline = merged("spatial_unpad", size)
    config = modeling.LlavaNextConfig(image_grid_pinpoints=[[h, w] for w, h in PINPOINTS])
    config.vision_config.image_size, config.vision_config.patch_size = 8, 2
    model = object.__new__(modeling.LlavaNextModel)
    torch.nn.Module.__init__(model)
    model.config = config
    packed, lengths = model.pack_image_features(
        [views], torch.tensor([size[::-1]]), "default", image_newline=newline
    )
    assert int(lengths[0]) == len(rows)
    torch.testing.assert_close(rows, packed[0], rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["no newline", "overview last", "transposed", "padding kept"])
def test_the_comparison_notices_a_wrong_order(fault: str) -> None:
    size = (640, 300)
    rows, views, newline = merged("spatial_unpad", size)
    layout = image_layout(anyres("spatial_unpad"), size, GRID)
    if fault == "no newline":
        found = layout.arrange(views.numpy(), np.zeros(WIDTH, np.float32))
    elif fault == "overview last":
        found = layout.arrange(views.roll(-1, 0).numpy(), newline.numpy())
    elif fault == "transposed":
        turned = views.unflatten(1, (SIDE, SIDE)).transpose(1, 2).flatten(1, 2)
        found = layout.arrange(turned.numpy(), newline.numpy())
    else:
        whole = image_layout(anyres("spatial"), size, GRID)
        found = whole.arrange(views.numpy(), newline.numpy())
    assert not np.array_equal(found, rows.numpy())


@pytest.mark.parametrize("merge", ["spatial", "spatial_unpad"])
def test_one_view_gets_a_newline_only_where_lines_do(merge: str) -> None:
    views, newline = torch.ones(1, SIDE**2, WIDTH), torch.zeros(WIDTH)
    ending = newline if merge == "spatial_unpad" else None
    rows = merge_views(views, (0, 0), (9, 9), ending, is_map=True)
    spec = ImageSpec(aspect_ratio="pad", merge=merge)  # type: ignore[arg-type]
    layout = image_layout(spec, (9, 9), GRID)
    np.testing.assert_array_equal(layout.arrange(views.numpy(), newline.numpy()), rows.numpy())
    assert len(rows) == SIDE**2 + (merge == "spatial_unpad")
