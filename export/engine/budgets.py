"""Budgets of the kernels that TensorRT chose: what a call may launch, and what it may move and keep besides its work.

The audit sees what TensorRT was given; this sees what became of it. A budget is stated for kernels as they should be.
What exceeds one for a reason that is known is recorded with the engine, and bounded in turn; anything else fails the build.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import ExportError
from longllava_trt.core.kernel_record import BudgetExcess, Kernel, KernelTensor, ProfileKernels
from longllava_trt.export.engine.stage_facts import StageFacts
from longllava_trt.models.parameters import (
    EMBEDDING,
    HEAD,
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
_LAUNCHES = {
    # norm, both halves of in_proj, convolution, x_proj, three norms, dt_proj, scan, out_proj
    _SCAN: 11,
    # norm, three products, cache, attention, o_proj
    path_ending(attention_path(0, "q_proj.weight")): 7,
    VISION_QUERIES: 7,
    # norm, three products
    ".feed_forward.gate.weight": 4,
    # norm, router, experts
    path_ending(router_path(0)): 3,
    # last position, norm, product
    HEAD: 3,
    # norm, two products, what lies between, biases
    ".mlp.fc1.weight": 7,
    # pictures and patches made ready, product, norm, table of positions
    ".patch_embedding.weight": 8,
    f"{PROJECTOR}0.weight": 5,
    EMBEDDING: 1,
}
"""Kernels for each parameter whose path ends so."""
_ATTENTION_REASON = "TensorRT's own attention expands keys and values to all heads, and makes its mask, in every call"
_ATTENTION_CURE = "the CachedAttention plugin, which reads the cache where it lies"
_BUILT_IN_LAUNCHES = 12
"""Kernels for mask, expansion and transposition around each attention over a cache."""


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
    copies = dict(_cache_sized(facts, found.kernels))
    unexplained = {
        tensor: kernel
        for tensor, kernel in copies.items()
        if not (facts.decomposed or set(kernel.nodes) & set(facts.built_in_attention))
    }
    problems += [
        f"{k.kind} '{k.name}' must write nothing of the cache's size, got {t.name} {list(t.shape)}"
        for t, k in unexplained.items()
    ]
    if copies:
        sizes = ", ".join(sorted({f"{list(t.shape)} {t.dtype}" for t in copies}))
        known.append(_excess("cache", f"{len(copies)} tensors of the cache's size: {sizes}"))
    limits = (
        ("scratch", found.scratch_bytes, _scratch_budget(facts, name, found.kernels), "bytes"),
        ("launches", found.launches, _launch_budget(facts), "kernels"),
    )
    for budget, got, limit, unit in limits:
        allowed = limit + _explained(facts, name, budget)
        if got > allowed and not facts.decomposed:
            problems.append(f"{budget} must be at most {allowed} {unit}, got {got}")
        elif got > limit:
            known.append(_excess(budget, f"{got} of {limit} {unit}"))
    return known, problems


def _excess(budget: str, excess: str) -> BudgetExcess:
    return BudgetExcess(
        budget=budget, excess=excess, reason=_ATTENTION_REASON, cure=_ATTENTION_CURE
    )


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
    _, heads, capacity, _ = facts.cache_shape
    least = 2 * capacity if heads == 1 else heads * capacity
    contract = {tensor.name for tensor in facts.spec.outputs}
    for kernel in kernels:
        for tensor in kernel.outputs:
            large = capacity in tensor.shape and _static_size(tensor) >= least
            if large and tensor.name not in contract:
                yield tensor, kernel


def _scratch_budget(facts: StageFacts, profile: str, kernels: Iterable[Kernel]) -> int:
    """Return room for some rows of the widest product, the largest workspace of a plugin, and products of any size."""
    rows = max((_rows(shape.max) for shape in facts.profiles[profile].values()), default=1)
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


def _launch_budget(facts: StageFacts) -> int:
    budget = sum(
        number
        for name in facts.weight_shapes
        for ending, number in _LAUNCHES.items()
        if name.endswith(ending)
    )
    if not facts.product_weights:
        # weights inside the engine are not halved: one product and two copies instead of two products
        budget += sum(name.endswith(_SCAN) for name in facts.weight_shapes)
    return budget


def _explained(facts: StageFacts, profile: str, budget: str) -> int:
    """Return by how much TensorRT's own attention may exceed a budget."""
    if facts.cache_shape is None or not facts.built_in_attention:
        return 0
    if budget == "launches":
        return _BUILT_IN_LAUNCHES * len(facts.built_in_attention)
    batch, _, capacity, head_dim = facts.cache_shape
    heads = max(facts.built_in_attention.values())
    expanded = 2 * batch * heads * capacity * head_dim * DTYPES[facts.dtype].itemsize
    rows = max(_rows(shape.max) for shape in facts.profiles[profile].values())
    # the mask of each query over the whole cache, in bytes
    return expanded + rows * capacity
