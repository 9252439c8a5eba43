"""Launch arithmetic of SparseMoE: kernels, grids and workspaces.

Pure functions of shapes, without torch or Triton, so that the C++ host code can mirror them line by
line; every call is the same sequence of kernels for any result of the router, so nothing waits for
the GPU. The mathematics is in `longllava_trt.plugins_trt.spec.SPARSE_MOE`, each kernel in its own
module.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Workspace

__all__ = [
    "COMBINE_COLUMNS",
    "DECODE_TOKENS",
    "GROUPED_SLOTS",
    "MAX_EXPERTS",
    "ROUTE_TOKENS",
    "TILES",
    "MoeShape",
    "Tile",
    "check_shape",
    "max_row_tiles",
    "plan_launches",
    "plan_workspaces",
    "select_tile",
    "split_reduction",
]

DECODE_TOKENS = 16
"""Up to this many tokens take the decode path: one tensor-core tile holds them all."""
MAX_EXPERTS = 64
"""Largest number of experts in a kernel; fewer take no more time."""
ROUTE_TOKENS = 32
"""Tokens of a program that routes or sorts."""
COMBINE_COLUMNS = 512
"""Outputs of a program that adds the experts' results."""
_SORT_ROWS = 32
_GROUP_ROWS = 8


@dataclass(frozen=True, slots=True)
class MoeShape:
    """The sizes of one call, named as in `SPARSE_MOE`."""

    num_tokens: int
    hidden: int
    intermediate: int
    num_experts: int
    top_k: int

    @property
    def num_slots(self) -> int:
        """Pairs of a token and one of its experts; slot = token * top_k + rank by expert."""
        return self.num_tokens * self.top_k


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows, columns and threads of one program of a matrix kernel."""

    rows: int
    """Tokens; at least 16, the tensor cores' height."""
    gate_up_columns: int
    """Columns of the activation; as many of gate and of up are computed."""
    down_columns: int
    depth: int
    """Bytes of T in one step along the reduction."""
    num_warps: int
    num_stages: int


TILES = {
    "decode": Tile(16, 32, 32, 256, 4, 4),
    "grouped_16": Tile(16, 64, 128, 256, 8, 3),
    "grouped_32": Tile(32, 64, 128, 256, 8, 3),
    "grouped_64": Tile(64, 128, 256, 128, 8, 3),
    "grouped_128": Tile(128, 64, 128, 128, 8, 3),
    "grouped_float32": Tile(64, 32, 64, 64, 8, 3),
}
"""Tile sizes by path. None spills registers in any format. Float32 uses no tensor cores, and larger
tiles would spill."""
GROUPED_SLOTS = {"grouped_16": 8, "grouped_32": 32, "grouped_64": 64}
"""Tiles by the most slots of an average expert, ascending; more take ``grouped_128``.

Tiles and limits up to 64 rows follow vLLM's tuned table of the published shape (16 experts of
14336, int8, A100): 8 to 64 tokens 16 rows x 128 x 256 deep, 128 to 256 tokens 32 x 128 x 128, from
512 tokens 64 x 256 x 64, where its columns count gate and up. An int4 group ends a depth at 128.
128 rows are ours: as many outputs as 64 x 256, and sm_90 makes half as many numbers of codes.
"""

_INTEGERS = {
    "route_tokens": ("num_tokens", "num_experts", "top_k"),
    "sort_slots": ("num_tokens", "num_experts", "top_k"),
    "grouped_gate_up": ("hidden", "intermediate", "num_experts", "top_k"),
    "grouped_down": ("hidden", "intermediate", "num_experts"),
    "decode_gate_up": ("num_tokens", "hidden", "intermediate", "top_k"),
    "decode_down": ("num_tokens", "hidden", "intermediate", "top_k", "part_length"),
    "combine_slots": ("num_tokens", "hidden", "top_k", "parts"),
}


def check_shape(shape: MoeShape) -> None:
    """Raise an error for a shape that the kernels do not support.

    Raises:
        ContractError: If there are too many experts, or ``top_k`` exceeds them.
    """
    if not 1 <= shape.top_k <= shape.num_experts <= MAX_EXPERTS:
        raise ContractError(
            f"SparseMoE: expected 1 <= top_k <= num_experts <= {MAX_EXPERTS}, got top_k "
            f"{shape.top_k} and {shape.num_experts} experts; rebuild the kernels with a larger "
            "MAX_EXPERTS, or correct the config"
        )


def select_tile(shape: MoeShape, *, itemsize: int) -> str:
    """Return the key of `TILES`: decode, or the grouped tile that an average expert fills."""
    if shape.num_tokens <= DECODE_TOKENS:
        return "decode"
    if itemsize == 4:
        return "grouped_float32"
    fitting = (
        n for n, most in GROUPED_SLOTS.items() if shape.num_slots <= most * shape.num_experts
    )
    return next(fitting, "grouped_128")


def split_reduction(hidden: int, intermediate: int, *, columns: int) -> tuple[int, int]:
    """Split the decode path's second product, so that one token still fills a GPU.

    It depends only on the weights' shape, so a token's result has the same bits in every batch.

    Args:
        hidden: Outputs of one expert.
        intermediate: Length of the reduction.
        columns: Outputs of one program.

    Returns:
        Number of parts, and the length of each, a multiple of 128; the last may be shorter.
    """
    groups = _ceil_div(intermediate, 128)
    parts = 1
    while parts < 8 and _ceil_div(hidden, columns) * parts < 512 and groups >= 16 * parts:
        parts *= 2
    length = _ceil_div(groups, parts) * 128
    return _ceil_div(intermediate, length), length


def plan_workspaces(
    shape: MoeShape, *, itemsize: int, tiles: dict[str, Tile] = TILES
) -> list[Workspace]:
    """Return the buffers of one call, in the order in which the kernels first write them.

    Args:
        shape: The sizes; ``num_tokens`` at least 1.
        itemsize: Bytes of one element of T.
        tiles: Tile sizes by path.
    """
    slots = shape.num_slots
    spaces = [
        Workspace("routing_weights", (slots,), "T"),
        Workspace("selected_experts", (slots,), "int32"),
        Workspace("block_counts", (_route_blocks(shape), shape.num_experts), "int32"),
    ]
    activations = Workspace("activations", (slots, shape.intermediate), "T")
    if select_tile(shape, itemsize=itemsize) == "decode":
        columns = tiles["decode"].down_columns
        parts, _ = split_reduction(shape.hidden, shape.intermediate, columns=columns)
        partial = Workspace("expert_outputs", (parts, slots, shape.hidden), "float32")
        return [*spaces, activations, partial]
    return [
        *spaces,
        Workspace("sorted_slots", (slots,), "int32"),
        Workspace("expert_ends", (shape.num_experts,), "int32"),
        activations,
        Workspace("expert_outputs", (1, slots, shape.hidden), "T"),
    ]


def plan_launches(
    shape: MoeShape, *, itemsize: int, tiles: dict[str, Tile] = TILES
) -> list[Launch]:
    """Return the kernels of one call, in stream order.

    Args:
        shape: The sizes; ``num_tokens`` at least 1.
        itemsize: Bytes of one element of T.
        tiles: Tile sizes by path; by default those that are compiled ahead of time.
    """
    name = select_tile(shape, itemsize=itemsize)
    tile = tiles[name]
    is_decode = name == "decode"
    parts, part_length = split_reduction(
        shape.hidden, shape.intermediate, columns=tile.down_columns
    )
    sizes = asdict(shape) | {"parts": parts if is_decode else 1, "part_length": part_length}

    def launch(
        kernel: str, grid: tuple[int, ...], warps: int = 4, stages: int = 1, **blocks: int
    ) -> Launch:
        x, y, z = (*grid, 1, 1)[:3]
        integers = {name: sizes[name] for name in _INTEGERS[kernel]}
        return Launch(kernel, (x, y, z), integers, blocks, warps, stages)

    route = {"block_tokens": ROUTE_TOKENS, "block_experts": MAX_EXPERTS}
    route_grid = (_route_blocks(shape),)
    product = {"block_rows": tile.rows, "block_depth": tile.depth // itemsize}
    if not is_decode:
        product |= {"block_experts": MAX_EXPERTS, "group_rows": _GROUP_ROWS}
    up = product | {"block_columns": tile.gate_up_columns}
    down = product | {"block_columns": tile.down_columns}
    up_tiles = _ceil_div(shape.intermediate, tile.gate_up_columns)
    down_tiles = _ceil_div(shape.hidden, tile.down_columns)
    threads = (tile.num_warps, tile.num_stages)
    if is_decode:
        matrices = [
            launch("decode_gate_up", (up_tiles, shape.num_slots), *threads, **up),
            launch("decode_down", (down_tiles, shape.num_slots, parts), *threads, **down),
        ]
    else:
        rows = max_row_tiles(shape, tile.rows)
        matrices = [
            launch("sort_slots", route_grid, **route, block_rows=_SORT_ROWS),
            launch("grouped_gate_up", (rows * up_tiles,), *threads, **up),
            launch("grouped_down", (rows * down_tiles,), *threads, **down),
        ]
    combine_grid = (shape.num_tokens, _ceil_div(shape.hidden, COMBINE_COLUMNS))
    return [
        launch("route_tokens", route_grid, **route),
        *matrices,
        launch("combine_slots", combine_grid, block_columns=COMBINE_COLUMNS),
    ]


def max_row_tiles(shape: MoeShape, rows: int) -> int:
    """Return the largest number of tiles, of ``rows`` each, that a routing of this shape needs."""
    slots, experts = shape.num_slots, shape.num_experts
    # an expert of n rows takes at most (n + rows - 1) / rows tiles
    return min(slots, (slots + experts * (rows - 1)) // rows)


def _route_blocks(shape: MoeShape) -> int:
    return _ceil_div(shape.num_tokens, ROUTE_TOKENS)


def _ceil_div(size: int, block: int) -> int:
    return -(-size // block)
