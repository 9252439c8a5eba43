"""SparseMoE's kernels as they are compiled ahead of time: argument types, constants, alignments.

The compiled kernels need hidden, intermediate and every address to be multiples of 16, because then
a load takes 16 bytes. After its own arguments a compiled kernel takes two more pointers: Triton's
scratch memory for global data and for profiling. They are not used, so both are null.
"""

from __future__ import annotations

from longllava_trt.plugins_trt.kernels.sparse_moe import KERNELS
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Variant
from longllava_trt.plugins_trt.launch_plans.sparse_moe import MoeShape, plan_launches

__all__ = ["list_variants"]

_CHUNKS = (1, 17, 128, 512, 4096)
"""Numbers of tokens that together need every tile, with 16 experts."""
_INT32 = {"selected_experts", "block_counts", "sorted_slots", "expert_ends"}
_WEIGHTS = {"none": "*T", "int8": "*i8", "int4": "*u8"}
_MULTIPLES_OF_16 = {"hidden", "intermediate", "part_length"}


def list_variants(dtype: str, weights: str) -> list[Variant]:
    """Return every kernel that SparseMoE may launch for one T and one weight format.

    Args:
        dtype: Triton's name of T.
        weights: The experts' format, as in `sparse_moe_formats`; ``none`` is T.
    """
    itemsize = 4 if dtype == "fp32" else 2
    variants: dict[str, Variant] = {}
    for num_tokens in _CHUNKS:
        shape = MoeShape(num_tokens, 4096, 14336, 16, 2)
        launches = plan_launches(shape, itemsize=itemsize)
        outputs = "fp32" if launches[1].kernel == "decode_gate_up" else dtype
        for launch in launches:
            variant = _variant(launch, dtype, weights, outputs)
            variants.setdefault(variant.name, variant)
    return list(variants.values())


def _variant(launch: Launch, dtype: str, weights: str, outputs: str) -> Variant:
    kernel = KERNELS[launch.kernel]
    known = dict.fromkeys(_INT32, "*i32") | dict.fromkeys(launch.blocks, "constexpr")
    known |= dict.fromkeys(launch.integers, "i32")
    known |= dict.fromkeys(("gate_up", "down"), _WEIGHTS[weights].replace("T", dtype))
    known |= dict.fromkeys(("gate_up_scales", "down_scales"), "*fp32")
    known |= {"expert_outputs": f"*{outputs}"}
    signature = {name: known.get(name, f"*{dtype}") for name in kernel.arg_names}
    aligned = [n for n, t in signature.items() if t.startswith("*") or n in _MULTIPLES_OF_16]
    name = f"{launch.kernel}_{dtype}"
    if launch.kernel.startswith(("grouped", "decode")):
        name += f"_{weights}_{launch.blocks['block_rows']}"
    elif launch.kernel == "combine_slots":
        name += f"_of_{outputs}"
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        blocks=launch.blocks,
        aligned=tuple(aligned),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
