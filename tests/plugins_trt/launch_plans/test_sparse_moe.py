"""Grids and workspaces of SparseMoE: shapes in, numbers out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.launch_plans.sparse_moe import (
    DECODE_TOKENS,
    MAX_EXPERTS,
    TILES,
    MoeShape,
    check_shape,
    max_row_tiles,
    plan_launches,
    plan_workspaces,
    select_tile,
    split_reduction,
)

SHAPE_53B = (4096, 14336, 16, 2)


@given(
    counts=st.lists(st.integers(0, 700), min_size=1, max_size=MAX_EXPERTS),
    rows=st.sampled_from([16, 32, 64, 128]),
)
def test_row_tiles_hold_any_routing(counts: list[int], rows: int) -> None:
    shape = MoeShape(sum(counts), 64, 64, len(counts), 1)
    assert sum(-(-count // rows) for count in counts) <= max_row_tiles(shape, rows)


@pytest.mark.parametrize("rows", [16, 64])
def test_row_tiles_are_no_more_than_some_routing_needs(rows: int) -> None:
    worst = [rows * 3 + 1] + [1] * 7
    shape = MoeShape(sum(worst), 64, 64, 8, 1)
    assert max_row_tiles(shape, rows) == sum(-(-count // rows) for count in worst)


@given(
    hidden=st.integers(1, 9000),
    intermediate=st.integers(1, 30000),
    columns=st.sampled_from([16, 32]),
)
def test_parts_cover_the_reduction_once(hidden: int, intermediate: int, columns: int) -> None:
    parts, length = split_reduction(hidden, intermediate, columns=columns)
    assert length % 128 == 0
    assert (parts - 1) * length < intermediate <= parts * length


@pytest.mark.parametrize(
    ("num_tokens", "itemsize", "expected"),
    [
        (1, 2, "decode"),
        (DECODE_TOKENS, 4, "decode"),
        (DECODE_TOKENS + 1, 2, "grouped_16"),
        (64, 2, "grouped_16"),
        (65, 2, "grouped_32"),
        (256, 2, "grouped_32"),
        (257, 2, "grouped_64"),
        (512, 2, "grouped_64"),
        (513, 2, "grouped_128"),
        (4096, 4, "grouped_float32"),
    ],
)
def test_tile_follows_from_tokens_an_expert(num_tokens: int, itemsize: int, expected: str) -> None:
    assert select_tile(MoeShape(num_tokens, *SHAPE_53B), itemsize=itemsize) == expected


def test_one_token_of_the_53b_fills_a_gpu() -> None:
    launches = plan_launches(MoeShape(1, *SHAPE_53B), itemsize=2)
    grids = {launch.kernel: launch.grid for launch in launches}
    assert grids == {
        "route_tokens": (1, 1, 1),
        "decode_gate_up": (448, 2, 1),
        "decode_down": (128, 2, 4),
        "combine_slots": (1, 8, 1),
    }
    assert launches[2].integers["part_length"] == 3584
    assert launches[3].integers["parts"] == 4


def test_a_chunk_of_the_53b_is_grouped() -> None:
    shape = MoeShape(4096, *SHAPE_53B)
    launches = plan_launches(shape, itemsize=2)
    grids = {launch.kernel: launch.grid for launch in launches}
    row_tiles = (8192 + 16 * 127) // 128
    assert grids == {
        "route_tokens": (128, 1, 1),
        "sort_slots": (128, 1, 1),
        "grouped_gate_up": (row_tiles * 224, 1, 1),
        "grouped_down": (row_tiles * 32, 1, 1),
        "combine_slots": (4096, 8, 1),
    }
    sizes = {"T": 2, "int32": 4, "float32": 4}
    spaces = plan_workspaces(shape, itemsize=2)
    total = sum(int(np.prod(space.shape)) * sizes[space.dtype] for space in spaces)
    assert total / 2**20 == pytest.approx(288, abs=0.2)


def test_depths_divide_the_int4_group() -> None:
    for itemsize in (2, 4):
        for tile in TILES.values():
            assert 128 % (tile.depth // itemsize) == 0


@pytest.mark.parametrize(("experts", "top_k"), [(4, 5), (4, 0), (MAX_EXPERTS + 1, 2)])
def test_shapes_that_no_kernel_holds_are_refused(experts: int, top_k: int) -> None:
    with pytest.raises(ContractError, match=f"SparseMoE.*got top_k {top_k} and {experts}"):
        check_shape(MoeShape(1, 64, 64, experts, top_k))
