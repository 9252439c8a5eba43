"""Launch arithmetic of CachedAttention: kernels, grids, integers, workspaces, tiles.

Pure functions of shapes, without torch or Triton. Only the device knows the lengths of the
sequences, so grids and workspaces are right for every length, and a captured launch stays right
while the sequences grow.

For few queries `attention_decode` runs: the heads that share a key/value head are the rows of one
tile, and the keys of all sequences together are divided among ``parts`` programs for each key/value
head, so that one long sequence among short ones still fills the GPU. 8 key/value heads on 132
multiprocessors, 4 programs each: 66 parts; at 100,000 keys a part has 1,536.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from longllava_trt.plugins_trt.launch_plans.plan import Launch, Workspace

__all__ = [
    "APPEND_TOKENS",
    "FLOAT32_TILES",
    "MAX_MULTIPROCESSORS",
    "MAX_SEQUENCES",
    "MIN_PART_BLOCKS",
    "MIN_ROWS",
    "TILES",
    "AttentionShape",
    "AttentionTiles",
    "ChunkTile",
    "DecodeTile",
    "plan_cached_attention",
    "tiles_of",
]

APPEND_TOKENS = 16
"""Tokens of a program that writes the caches."""
COMBINED_PARTS = 32
"""Parts that a program of the combining kernel reads at once."""
MIN_PART_BLOCKS = 2
"""Least number of blocks of keys in a part, unless the sequence is shorter."""
MIN_ROWS = 16
"""Rows of the smallest tile that tensor cores multiply."""
MAX_SEQUENCES = MIN_ROWS
"""Sequences of a call that kernels are compiled for ahead of time."""
MAX_MULTIPROCESSORS = 192
"""Of a card, for the size of workspaces where the card is not known yet; a larger one is not filled."""


@dataclass(frozen=True, slots=True)
class ChunkTile:
    """A program of `attention_chunk`."""

    block_queries: int
    block_keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """A program of `attention_decode`."""

    block_keys: int
    num_warps: int
    num_stages: int
    programs: int
    """Number of programs for each multiprocessor."""
    max_rows: int = 64
    """Queries times heads of a group; with more, it is a chunk."""
    other_warps: int | None = None
    """Warps of a tile with fewer rows, or with a padded head; as ``num_warps`` if omitted."""


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """Tiles of one architecture."""

    chunk: ChunkTile
    decode: DecodeTile
    multiprocessors: int
    """Multiprocessors of its largest GPU, used if no GPU is asked."""


TILES = {
    80: AttentionTiles(ChunkTile(128, 64, 8, 3), DecodeTile(64, 4, 3, 4), 108),
    86: AttentionTiles(ChunkTile(128, 32, 8, 3), DecodeTile(64, 4, 2, 4), 84),
    89: AttentionTiles(ChunkTile(128, 32, 8, 3), DecodeTile(64, 4, 2, 4), 128),
    90: AttentionTiles(ChunkTile(128, 128, 8, 3), DecodeTile(64, 4, 3, 4), 132),
    120: AttentionTiles(ChunkTile(128, 64, 8, 3), DecodeTile(64, 4, 2, 4), 170),
}
"""Tiles by compute capability, for T of 2 bytes."""
FLOAT32_TILES = AttentionTiles(ChunkTile(32, 32, 8, 1), DecodeTile(32, 8, 1, 4, 32, 16), 132)
"""Tiles for float32, multiplied without TF32. ptxas spills with other numbers of warps."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes of one call."""

    batch: int
    seq_len: int
    """New tokens of each sequence, at least 1."""
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    """Positions that a cache has room for."""

    @property
    def group(self) -> int:
        """Heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Queries of one sequence that share a key/value head."""
        return self.seq_len * self.group


def tiles_of(arch: int, *, itemsize: int) -> AttentionTiles:
    """Return an architecture's tiles: its own, or those of the nearest known one before it.

    Architectures after sm_90 have as much shared memory, except sm_12x, which is like sm_89.
    """
    if itemsize == 4:
        return FLOAT32_TILES
    if arch // 10 == 12:
        return TILES[120]
    return TILES[max((known for known in TILES if known <= min(arch, 90)), default=86)]


def plan_cached_attention(
    shape: AttentionShape,
    *,
    tiles: AttentionTiles,
    scale: float | None = None,
    rotary: bool = False,
    strides: tuple[int, int, int, int, int, int] | None = None,
    multiprocessors: int | None = None,
) -> tuple[list[Launch], list[Workspace]]:
    """Return the kernels of one CachedAttention in stream order, and the buffers between them.

    Args:
        shape: Sizes.
        tiles: Tiles of the architecture.
        scale: Scale of the scores, above zero; head_dim ** -0.5 if omitted.
        rotary: Whether queries and new keys are rotated.
        strides: Elements from one sequence to the next and from one token to the next, of q, then
            of k, then of v; heads are adjacent. Contiguous tensors if omitted.
        multiprocessors: Number of the GPU's multiprocessors.
    """
    scale = shape.head_dim**-0.5 if scale is None else scale
    if strides is None:
        rows = [n * shape.head_dim for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
        q, k, v = ((shape.seq_len * row, row) for row in rows)
        strides = (*q, *k, *v)
    names = ("q_batch", "q_token", "k_batch", "k_token", "v_batch", "v_token")
    places = dict(zip(names, strides, strict=True))
    sizes = {"seq_len": shape.seq_len, "capacity": shape.capacity}
    head = {
        "head_dim": shape.head_dim,
        "block_dim": _power_of_two(max(shape.head_dim, MIN_ROWS)),
        "rotary": int(rotary),
    }
    append = Launch(
        "append_cache",
        (_ceil_div(shape.seq_len, APPEND_TOKENS), shape.kv_heads, shape.batch),
        {name: places[name] for name in names[2:]} | sizes,
        head | {"block_tokens": APPEND_TOKENS},
        4,
    )
    integers = {name: places[name] for name in names[:2]} | sizes
    integers |= {"scale_bits": _float_bits(scale * math.log2(math.e))}
    blocks = {"group": shape.group, **head}
    if shape.rows > tiles.decode.max_rows:
        return [append, _chunk(shape, tiles.chunk, integers, blocks)], []
    launches, spaces = _decode(shape, tiles, integers, blocks, multiprocessors)
    return [append, *launches], spaces


def _chunk(
    shape: AttentionShape, tile: ChunkTile, integers: dict[str, int], blocks: dict[str, int]
) -> Launch:
    grid = (_ceil_div(shape.seq_len, tile.block_queries), shape.heads, shape.batch)
    # masks of a padded head take registers, and so does rotating: elsewhere ptxas spills
    is_padded = blocks["block_dim"] != shape.head_dim
    block_keys = tile.block_keys >> int(is_padded) >> blocks["rotary"]
    block_keys = max(block_keys, MIN_ROWS)
    blocks = blocks | {"block_queries": tile.block_queries, "block_keys": block_keys}
    return Launch("attention_chunk", grid, integers, blocks, tile.num_warps, tile.num_stages)


def _decode(
    shape: AttentionShape,
    tiles: AttentionTiles,
    integers: dict[str, int],
    blocks: dict[str, int],
    multiprocessors: int | None,
) -> tuple[list[Launch], list[Workspace]]:
    tile = tiles.decode
    programs = tile.programs * (multiprocessors or tiles.multiprocessors)
    parts = max(programs // shape.kv_heads, 1)
    longest = _ceil_div(_ceil_div(shape.capacity, tile.block_keys), MIN_PART_BLOCKS)
    # each sequence's last part may be a short one
    slots = min(parts + shape.batch - 1, shape.batch * longest)
    shared = {"block_keys": tile.block_keys, "min_blocks": MIN_PART_BLOCKS}
    shared |= {"block_batch": _power_of_two(max(shape.batch, MIN_ROWS))}
    dealt = {"batch": shape.batch, "parts": parts}
    blocks = blocks | {"block_rows": _power_of_two(max(shape.rows, MIN_ROWS))} | shared
    is_full = blocks["block_rows"] == tile.max_rows and blocks["block_dim"] == shape.head_dim
    combine = {"seq_len": shape.seq_len, "capacity": shape.capacity, **dealt, "slots": slots}
    combine_blocks = {name: blocks[name] for name in ("group", "head_dim", "block_dim")}
    combine_blocks |= {"block_parts": COMBINED_PARTS, **shared}
    return [
        Launch(
            "attention_decode",
            (slots, shape.kv_heads, 1),
            integers | dealt,
            blocks,
            tile.num_warps if is_full else tile.other_warps or tile.num_warps,
            tile.num_stages,
        ),
        Launch(
            "combine_parts",
            (shape.rows, shape.kv_heads, shape.batch),
            combine,
            combine_blocks,
            4,
        ),
    ], [
        Workspace("part_outputs", (shape.kv_heads, slots, shape.rows, shape.head_dim)),
        Workspace("part_logs", (shape.kv_heads, slots, shape.rows)),
    ]


def _float_bits(value: float) -> int:
    """Return a float32 as the integer of the same bits: kernels take integers only."""
    bits: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return bits


def _ceil_div(size: int, block: int) -> int:
    return -(-size // block)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
