"""Launch arithmetic of MambaScan: kernels, grids, integers, workspaces.

Pure functions of shapes, without torch or Triton, so that the C++ host code can mirror them line by
line. A decode step is one kernel: each program normalises a token's dt, B and C itself, which is
cheap, and reads the rows of dt_proj that its own channels need. 8192 channels are 1024 programs of a
warp, each with 4 KiB of a weight of rank 256 on its way at once.

Of many tokens the norms and the product are kernels of their own, and the scan is SelectiveScan's.
"""

from __future__ import annotations

from dataclasses import dataclass

from longllava_trt.plugins_trt.launch_plans.elementwise import (
    float_bits,
    plan_norm_dt_b_c,
)
from longllava_trt.plugins_trt.launch_plans.mixers import (
    STEP_CHANNELS,
    STEP_TOKENS,
    plan_scan_chunks,
    scan_blocks,
)
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Workspace

__all__ = [
    "ALIGNED",
    "PROJECT_TILES",
    "STEP_RANK",
    "MambaScanShape",
    "ProjectTile",
    "plan_mamba_scan",
]

ALIGNED = 16
"""Divisor of sizes with which loads take 16 bytes; kernels for other sizes are apart."""
STEP_RANK = {True: 256, False: 64}
"""Columns of dt_proj that a program of the decode kernel reads at once, by whether sizes are aligned."""


@dataclass(frozen=True, slots=True)
class ProjectTile:
    """A program of `project_dt`."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


PROJECT_TILES = {2: ProjectTile(128, 128, 32, 8, 3), 4: ProjectTile(64, 64, 16, 8, 1)}
"""Tiles by the size of T; float32 is multiplied without TF32."""


@dataclass(frozen=True, slots=True)
class MambaScanShape:
    """Sizes of one call."""

    batch: int
    seq_len: int
    """Tokens of each sequence, at least 1."""
    d_inner: int
    d_state: int
    dt_rank: int

    @property
    def rows(self) -> int:
        """Tokens of all sequences."""
        return self.batch * self.seq_len

    @property
    def is_aligned(self) -> bool:
        """Whether rows of weights begin where loads of 16 bytes may."""
        return self.d_inner % ALIGNED == self.dt_rank % ALIGNED == 0


def plan_mamba_scan(
    shape: MambaScanShape, *, eps: float, itemsize: int, chunks: int | None = None
) -> tuple[list[Launch], list[Workspace]]:
    """Return the kernels of one MambaScan in stream order, and the buffers between them.

    Args:
        shape: Sizes.
        eps: Added to each mean square.
        itemsize: Bytes of an element of T.
        chunks: As for `mixers.scan_chunks`.
    """
    if shape.seq_len <= STEP_TOKENS:
        return [_step(shape, eps)], []
    launches, spaces = plan_scan_chunks(
        shape.batch,
        shape.seq_len,
        shape.d_inner,
        shape.d_state,
        z_row=2 * shape.d_inner,
        chunks=chunks,
    )
    norm = plan_norm_dt_b_c(shape.rows, shape.dt_rank, shape.d_state, eps=eps)
    return [norm, _project(shape, PROJECT_TILES[itemsize]), *launches], [
        Workspace("dt_low", (shape.rows, shape.dt_rank), "T"),
        Workspace("B", (shape.rows, shape.d_state), "T"),
        Workspace("C", (shape.rows, shape.d_state), "T"),
        Workspace("dt", (shape.rows, shape.d_inner), "T"),
        *spaces,
    ]


def _step(shape: MambaScanShape, eps: float) -> Launch:
    grid = (_ceil_div(shape.d_inner, STEP_CHANNELS), shape.batch, 1)
    integers = {"seq_len": shape.seq_len, "d_inner": shape.d_inner, "dt_rank": shape.dt_rank}
    integers |= {"eps_bits": float_bits(eps)}
    blocks = scan_blocks(shape.d_state, STEP_CHANNELS) | {"block_rank": STEP_RANK[shape.is_aligned]}
    return Launch("mamba_step", grid, integers, blocks, 1)


def _project(shape: MambaScanShape, tile: ProjectTile) -> Launch:
    grid = (_ceil_div(shape.rows, tile.rows), _ceil_div(shape.d_inner, tile.columns), 1)
    integers = {"rows": shape.rows, "d_inner": shape.d_inner, "dt_rank": shape.dt_rank}
    blocks = {"block_rows": tile.rows, "block_columns": tile.columns, "block_depth": tile.depth}
    return Launch("project_dt", grid, integers, blocks, tile.num_warps, tile.num_stages)


def _ceil_div(size: int, block: int) -> int:
    return -(-size // block)
