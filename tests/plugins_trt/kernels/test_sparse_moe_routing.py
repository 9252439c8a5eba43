"""Routing and sorting: each kernel by itself, against numpy."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from longllava_trt.plugins_trt.kernels.sparse_moe import KERNELS
from longllava_trt.plugins_trt.launch_plans.sparse_moe import (
    MoeShape,
    plan_launches,
    plan_workspaces,
)

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
GUARD = 8
DTYPES = {"T": torch.float32, "float32": torch.float32, "int32": torch.int32}


@pytest.fixture
def _fresh_tensors_are_poisoned() -> None:
    """Leave `new_empty` alone: the buffers below are poisoned already."""


def run(shape: MoeShape, kernels: list[str], **tensors: torch.Tensor) -> dict[str, np.ndarray]:
    """Run some of a call's kernels on poisoned buffers and return all of these."""
    sizes = {space.name: space for space in plan_workspaces(shape, itemsize=4)}
    held = {
        name: torch.full((math.prod(s.shape) + GUARD,), -1, dtype=DTYPES[s.dtype], device=DEVICE)
        for name, s in sizes.items()
    }
    held |= {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    for launch in plan_launches(shape, itemsize=4):
        if launch.kernel in kernels:
            kernel = KERNELS[launch.kernel]
            pointers = {name: held[name] for name in kernel.arg_names if name in held}
            kernel[launch.grid](**pointers, **launch.integers, **launch.blocks)
    for name in sizes:
        assert (held[name][-GUARD:] == -1).all(), f"{name}: written beyond its end"
    return {name: held[name][:-GUARD].cpu().numpy() for name in sizes}


def route(logits: np.ndarray, top_k: int) -> dict[str, np.ndarray]:
    shape = MoeShape(logits.shape[0], 16, 16, logits.shape[1], top_k)
    kernels = ["route_tokens", "sort_slots"]
    return run(shape, kernels, router_logits=torch.from_numpy(logits))


def expected_routing(logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    p = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    chosen = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :top_k], axis=1)
    return chosen, np.take_along_axis(p, chosen, 1)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 63, 64, 65, 1000])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (16, 2), (5, 4)])
def test_tokens_get_their_experts_in_ascending_order(
    num_tokens: int, experts: int, top_k: int
) -> None:
    logits = np.random.default_rng(num_tokens).standard_normal((num_tokens, experts))
    # whole numbers tie often
    logits = np.rint(logits * 2).astype(np.float32)
    got = route(logits, top_k)
    chosen, weights = expected_routing(logits, top_k)
    assert np.array_equal(got["selected_experts"].reshape(-1, top_k), chosen)
    np.testing.assert_allclose(got["routing_weights"].reshape(-1, top_k), weights, rtol=2e-6)


def test_as_many_experts_as_fit_are_told_apart() -> None:
    logits = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
    got = route(logits, 8)
    experts = got["selected_experts"]
    assert np.array_equal(experts.reshape(-1, 8), expected_routing(logits, 8)[0])
    assert np.array_equal(got["sorted_slots"], np.argsort(experts, kind="stable"))


@pytest.mark.parametrize("routing", ["random", "one-expert", "two-experts", "equal"])
@pytest.mark.parametrize("num_tokens", [17, 65, 1000])
def test_slots_are_sorted_stably_by_expert(num_tokens: int, routing: str) -> None:
    logits = np.random.default_rng(3).standard_normal((num_tokens, 16)).astype(np.float32)
    if routing == "one-expert":
        logits[:, 11] = 50
    if routing == "two-experts":
        logits[:, [2, 15]] = 50
    if routing == "equal":
        logits[:] = 0.5
    got = route(logits, 2)
    experts = got["selected_experts"]
    assert np.array_equal(got["sorted_slots"], np.argsort(experts, kind="stable"))
    assert np.array_equal(got["expert_ends"], np.bincount(experts, minlength=16).cumsum())
    if routing == "equal":
        assert experts.reshape(-1, 2).tolist() == [[0, 1]] * num_tokens


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinities_and_nans_choose_top_k_experts_all_the_same() -> None:
    inf, nan = np.inf, np.nan
    logits = [[-inf, 1, -inf, -inf], [-inf, 0, 3, -inf], [nan, nan, nan, nan], [1, nan, 2, 3]]
    got = route(np.array(logits * 5, np.float32), 2)
    experts = got["selected_experts"].reshape(-1, 2)
    assert experts[:3].tolist() == [[0, 1], [1, 2], [0, 1]]
    assert (np.diff(experts, axis=1) > 0).all()
    assert experts.min() >= 0
    assert experts.max() < 4
    weights = got["routing_weights"].reshape(-1, 2)
    assert weights[0].tolist() == [0, 1]
    assert np.isnan(weights[2:4]).all()
    assert np.array_equal(np.sort(got["sorted_slots"]), np.arange(40))
