"""CachedAttention's launch arithmetic, and what is compiled of it ahead of time."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from longllava_trt.plugins_trt.launch_plans.cached_attention import (
    FLOAT32_TILES,
    MIN_PART_BLOCKS,
    TILES,
    AttentionShape,
    plan_cached_attention,
    tiles_of,
)
from longllava_trt.plugins_trt.launch_plans.plan import Launch

ROOT = Path(__file__).parents[3]
H100 = TILES[90]

# a process of its own: what is interpreted in this one cannot be compiled in it
MEASURE = """
import sys
from longllava_trt.plugins_trt.kernels.cached_attention_variants import list_variants
from longllava_trt.plugins_trt.kernels.resources import measure
arch = int(sys.argv[1])
for dtype in sys.argv[2].split(","):
    for head_dim in map(int, sys.argv[3].split(",")):
        for rotary in (False, True):
            for variant in list_variants(dtype, arch=arch, head_dim=head_dim, rotary=rotary):
                r = measure(variant, arch=arch)
                print(variant.name, head_dim, r.registers, r.shared_bytes, r.spilled_bytes)
"""
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""Shared memory that a program may have."""


def by_name(shape: AttentionShape) -> dict[str, Launch]:
    return {launch.kernel: launch for launch in plan_cached_attention(shape, tiles=H100)[0]}


def test_a_chunk_has_a_program_for_every_block_of_queries() -> None:
    launches, spaces = plan_cached_attention(
        AttentionShape(2, 4097, 32, 8, 128, 176_000), tiles=H100
    )
    assert [launch.kernel for launch in launches] == ["append_cache", "attention_chunk"]
    assert [launch.grid for launch in launches] == [(257, 8, 2), (33, 32, 2)]
    assert spaces == []


def test_a_step_fills_the_card_from_one_sequence_to_many() -> None:
    for batch in (1, 2, 8, 16):
        shape = AttentionShape(batch, 1, 32, 8, 128, 176_000)
        decode = by_name(shape)["attention_decode"]
        assert decode.integers["parts"] == 66
        assert decode.grid == (66 + batch - 1, 8, 1)
        assert by_name(shape)["combine_parts"].grid == (4, 8, batch)


def test_no_more_slots_than_a_small_cache_has_blocks() -> None:
    decode = by_name(AttentionShape(3, 1, 32, 8, 128, 300))["attention_decode"]
    assert decode.grid == (3 * 3, 8, 1)


def test_workspaces_hold_every_part() -> None:
    shape = AttentionShape(3, 2, 6, 2, 64, 5000)
    launches, spaces = plan_cached_attention(shape, tiles=H100)
    slots = launches[1].grid[0]
    assert {space.name: space.shape for space in spaces} == {
        "part_outputs": (2, slots, 6, 64),
        "part_logs": (2, slots, 6),
    }
    assert launches[2].integers["slots"] == slots


def test_whatever_the_lengths_parts_have_slots() -> None:
    """The device's arithmetic, in Python: `deal_parts`."""
    rng = random.Random(0)
    for _ in range(2000):
        batch, capacity = rng.randint(1, 20), rng.choice([1, 64, 65, 1000, 9000, 176_000])
        shape = AttentionShape(batch, 1, 32, rng.choice([1, 8, 32]), 128, capacity)
        decode = by_name(shape)["attention_decode"]
        block, parts = decode.blocks["block_keys"], decode.integers["parts"]
        lengths = [rng.randint(1, rng.choice([1, capacity])) for _ in range(batch)]
        blocks = [-(-n // block) for n in lengths]
        part_blocks = max(-(-sum(blocks) // parts), MIN_PART_BLOCKS)
        assert sum(-(-n // part_blocks) for n in blocks) <= decode.grid[0]
        assert decode.blocks["block_batch"] >= batch


def test_few_queries_are_a_step_and_more_are_a_chunk() -> None:
    for seq_len, group in ((16, 4), (64, 1), (1, 64), (2, 32)):
        decode = by_name(AttentionShape(1, seq_len, 2 * group, 2, 64, 100))["attention_decode"]
        assert decode.blocks["block_rows"] == seq_len * group == H100.decode.max_rows
    for seq_len, group in ((17, 4), (65, 1), (1, 65)):
        assert "attention_chunk" in by_name(AttentionShape(1, seq_len, 2 * group, 2, 64, 100))


def test_scale_and_strides_are_passed_on() -> None:
    shape = AttentionShape(1, 1, 4, 2, 64, 100)
    launches = plan_cached_attention(
        shape, tiles=H100, scale=2.0, strides=(8, 7, 6, 5, 4, 3), multiprocessors=10
    )[0]
    bits = struct.pack("<i", launches[1].integers["scale_bits"])
    assert struct.unpack("<f", bits)[0] == pytest.approx(2.0 * 1.4426950408889634)
    assert list(launches[0].integers.values())[:4] == [6, 5, 4, 3]
    assert list(launches[1].integers.values())[:2] == [8, 7]
    assert launches[1].integers["parts"] == 20


def test_every_architecture_has_tiles() -> None:
    known = {arch: tiles_of(arch, itemsize=2) for arch in (75, 80, 86, 87, 89, 90, 100, 103, 120)}
    assert known[80] == TILES[80]
    assert known[75] == known[86] == known[87] == TILES[86]
    assert known[90] == known[100] == known[103] == TILES[90]
    assert tiles_of(121, itemsize=2) == TILES[120]
    assert tiles_of(90, itemsize=4) == FLOAT32_TILES


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
def test_every_launch_has_a_variant(dtype: Literal["fp32", "bf16"], rotary: bool) -> None:
    from longllava_trt.plugins_trt.kernels.cached_attention_variants import list_variants

    variants = {
        (v.kernel.__name__, tuple(v.blocks.items()), v.num_warps, v.num_stages): v
        for v in list_variants(dtype, arch=80, rotary=rotary)
    }
    for batch, seq_len in ((1, 1), (16, 1), (3, 2), (1, 5), (1, 16), (1, 17), (2, 4096)):
        shape = AttentionShape(batch, seq_len, 32, 8, 128, 176_000)
        tiles = tiles_of(80, itemsize=4 if dtype == "fp32" else 2)
        for launch in plan_cached_attention(shape, tiles=tiles, rotary=rotary)[0]:
            key = (launch.kernel, tuple(launch.blocks.items()))
            variant = variants[*key, launch.num_warps, launch.num_stages]
            types = list(variant.signature.values())
            assert types == sorted(types, key=lambda t: (t[0] != "*", t == "constexpr"))
            integers = [name for name, t in variant.signature.items() if t in {"i32", "i64"}]
            assert integers == list(launch.integers)
            constants = [name for name, t in variant.signature.items() if t == "constexpr"]
            assert constants == list(launch.blocks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "dtypes", "head_dims"),
    [
        (80, "bf16,fp16", "128"),
        (80, "bf16,fp16", "80,96"),
        (80, "fp32", "128,96"),
        (89, "bf16", "128,96"),
        (90, "bf16", "128"),
        (90, "bf16", "64"),
        (90, "bf16", "80,96"),
        (120, "bf16", "128,96"),
    ],
)
def test_nothing_spills(arch: int, dtypes: str, head_dims: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    lines = subprocess.run(
        [sys.executable, "-c", MEASURE, str(arch), dtypes, head_dims],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    # append, a chunk, combine, and a step's sizes, which are fewer in float32
    sizes = sum(5 if dtype == "fp32" else 6 for dtype in dtypes.split(","))
    assert len(lines) == 2 * sizes * len(head_dims.split(","))
    assert [line for line in lines if not line.endswith(" 0")] == []
    assert max(int(line.split()[3]) for line in lines) <= SHARED_KIB[arch] * 1024
