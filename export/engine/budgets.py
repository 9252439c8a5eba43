"""Budgets of the kernels that TensorRT chose: what a call may launch, and what it may move and keep besides its work.

The audit sees what TensorRT was given; this sees what became of it. What exceeds a budget fails the build, but for
float32: there TensorRT takes its own attention apart, and what that costs is recorded with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import ExportError
from longllava_trt.core.kernel_record import BudgetExcess, Kernel, KernelTensor, ProfileKernels
from longllava_trt.core.stage_spec import PAST_PREFIX
from longllava_trt.export.engine.stage_facts import StageFacts
from longllava_trt.models.parameters import (
    EMBEDDING,
    HEAD,
    IMAGE_NEWLINE,
    PROJECTOR,
    VISION_QUERIES,
    attention_path,
    mamba_path,
    path_ending,
    router_path,
)

__all__ = ["check_budgets"]

_MULTIPLIES = frozenset({"gemm", "runtime_fusion", "custom_layer", "correlation"})
"""Kinds of kernels that are products or plugins; a fusion is a product with what follows it."""
_TACTIC_BYTES = 32 * 2**20
"""Bytes that TensorRT keeps for products of any size, with a margin: the smallest engine has 8 MiB."""
_ROWS_OF_WIDEST = 4
"""Tensors as wide as the widest product that may be alive at once."""
_SCAN = path_ending(mamba_path(0, "A_log"))
_QUERIES = path_ending(attention_path(0, "q_proj.weight"))
_LAUNCHES = {
    # norm, in_proj, convolution, x_proj, scan with what lies before it, out_proj
    _SCAN: 6,
    # norm, three products, caches, attention and what adds its parts, o_proj
    _QUERIES: 7,
    VISION_QUERIES: 7,
    # norm, three products
    ".feed_forward.gate.weight": 4,
    # norm, router, experts
    path_ending(router_path(0)): 3,
    # last position, mean of squares, norm with product, cast of the scores: so where TensorRT makes
    # the product a vector kernel, as at a width of 96 (seen); else one less
    HEAD: 4,
    # norm, two products, what lies between, biases
    ".mlp.fc1.weight": 7,
    # pictures and patches made ready, product, norm, table of positions
    ".patch_embedding.weight": 8,
    f"{PROJECTOR}0.weight": 5,
    IMAGE_NEWLINE: 1,
    EMBEDDING: 1,
}
"""Kernels for each parameter whose path ends so."""
_OF_A_BATCH = {
    # TensorRT halves both norms of a layer
    _SCAN: 2,
    _QUERIES: 2,
    # and leaves SiLU and the product with it out of the second of three products
    ".feed_forward.gate.weight": 1,
}
"""Kernels more of each, where the batch varies."""
_FLOAT32_REASON = "TensorRT has no fused attention in float32, and takes it apart"
_FLOAT32_CURE = "an export in bfloat16 or float16"


def check_budgets(
    facts: StageFacts, found: Mapping[str, ProfileKernels]
) -> Mapping[str, ProfileKernels]:
    """Hold the kernels of each profile against their budgets.

    Args:
        facts: Of the stage.
        found: From `read_kernels`.

    Returns:
        The same, with what exceeds a budget for a known reason.

    Raises:
        ExportError: Says everything that exceeds a budget and has no known reason.
    """
    checked, problems = {}, []
    for name, kernels in found.items():
        known, wrong = _check_profile(facts, name, kernels)
        checked[name] = replace(kernels, excesses=tuple(known))
        problems += [f"profile '{name}': {problem}" for problem in wrong]
    if problems:
        raise ExportError(
            f"{facts.spec.name}: the kernels TensorRT chose exceed their budgets: {'; '.join(problems)}"
        )
    return checked


def _check_profile(
    facts: StageFacts, name: str, found: ProfileKernels
) -> tuple[list[BudgetExcess], list[str]]:
    known: list[BudgetExcess] = []
    problems = list(_weights_written_again(facts, found.kernels))
    problems += [
        f"{k.kind} '{k.name}' must write nothing of the cache's size, got {t.name} {list(t.shape)}"
        for t, k in _cache_sized(facts, found.kernels)
    ]
    limits = (
        ("scratch", found.scratch_bytes, _scratch_budget(facts, name, found.kernels), "bytes"),
        ("launches", found.launches, _launch_budget(facts, name), "kernels"),
    )
    for budget, got, limit, unit in limits:
        if got > limit and facts.decomposed:
            excess = f"{got} of {limit} {unit}"
            known.append(
                BudgetExcess(
                    budget=budget, excess=excess, reason=_FLOAT32_REASON, cure=_FLOAT32_CURE
                )
            )
        elif got > limit:
            problems.append(f"{budget} must be at most {limit} {unit}, got {got}")
    return known, problems


def _weights_written_again(facts: StageFacts, kernels: Sequence[Kernel]) -> Iterator[str]:
    """Yield kernels that read a weight and are no product: what they write is as large as the weight.

    With one row TensorRT may make a kernel of its own for a product, which writes a row.
    """
    for kernel in kernels:
        if kernel.kind in _MULTIPLIES:
            continue
        written = max((_static_size(tensor) for tensor in kernel.outputs), default=0)
        for tensor in kernel.inputs:
            if tensor.name in facts.product_weights and written >= _static_size(tensor):
                yield (
                    f"weight '{tensor.name}' must be read by products and plugins alone, got {kernel.kind} "
                    f"'{kernel.name}'"
                )


def _static_size(tensor: KernelTensor) -> int:
    return math.prod(dim for dim in tensor.shape if dim > 0)


def _cache_sized(
    facts: StageFacts, kernels: Sequence[Kernel]
) -> Iterator[tuple[KernelTensor, Kernel]]:
    """Yield what is written besides the caches and has the cache's length for more than one head."""
    if facts.cache_shape is None:
        return
    heads, capacity, _ = facts.cache_shape
    least = 2 * capacity if heads == 1 else heads * capacity
    contract = {tensor.name for tensor in facts.spec.outputs}
    for kernel in kernels:
        for tensor in kernel.outputs:
            large = capacity in tensor.shape and _static_size(tensor) >= least
            if large and tensor.name not in contract:
                yield tensor, kernel


def _scratch_budget(facts: StageFacts, profile: str, kernels: Iterable[Kernel]) -> int:
    """Return room for some rows of the widest product, the largest workspace of a plugin, and products of any size."""
    taken = facts.profiles[profile].items()
    rows = max((_rows(s.max) for name, s in taken if not name.startswith(PAST_PREFIX)), default=1)
    widths = [
        sum(shape)
        for name, shape in facts.weight_shapes.items()
        # the head is applied to one position
        if len(shape) == 2 and not name.endswith((HEAD, EMBEDDING))
    ]
    workspace = max((_workspace_bytes(kernel) for kernel in kernels), default=0)
    row_bytes = _ROWS_OF_WIDEST * max(widths, default=0) * DTYPES[facts.dtype].itemsize
    return _TACTIC_BYTES + workspace + rows * row_bytes


def _rows(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1]) if len(shape) > 2 else 1


def _workspace_bytes(kernel: Kernel) -> int:
    """Return the size of a plugin's workspaces, which TensorRT counts as scratch."""
    if kernel.kind != "custom_layer":
        return 0
    return sum(math.prod(tensor.shape) for tensor in kernel.outputs if tensor.dtype == "uint8")


def _launch_budget(facts: StageFacts, profile: str) -> int:
    """Return how many kernels a call may launch."""
    kinds = [_LAUNCHES]
    taken = facts.profiles[profile].items()
    if any(s.min[0] < s.max[0] for name, s in taken if name.startswith(PAST_PREFIX)):
        kinds.append(_OF_A_BATCH)
    budget = sum(
        number
        for kind in kinds
        for ending, number in kind.items()
        for name in facts.weight_shapes
        if name.endswith(ending)
    )
    # keys are rotated where they are written, queries by a kernel of their own
    return budget + facts.rotations // 2
