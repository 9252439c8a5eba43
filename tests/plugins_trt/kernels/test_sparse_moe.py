"""SparseMoE whole: against its twin, against float64 token by token, and against itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.kernels.sparse_moe import KERNELS, sparse_moe
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import (
    dequantise_int4,
    dequantise_int8,
    quantise_int4,
    quantise_int8,
)
from longllava_trt.plugins_trt.kernels.sparse_moe_naive import naive_sparse_moe
from longllava_trt.plugins_trt.launch_plans.sparse_moe import TILES, Tile

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SMALL_TILES = {
    "decode": Tile(16, 32, 64, 128, 4, 3),
    "grouped_16": Tile(16, 64, 32, 64, 4, 3),
    "grouped_32": Tile(16, 32, 64, 128, 4, 3),
    "grouped_64": Tile(16, 64, 32, 64, 4, 3),
    "grouped_128": Tile(32, 32, 64, 64, 4, 3),
    "grouped_float32": Tile(32, 64, 32, 128, 4, 3),
}
"""Several tiles along every axis of a small problem."""

pytestmark = pytest.mark.usefixtures("bfloat16_is_multiplied")

Tensors = dict[str, Any]


def make(
    num_tokens: int,
    dtype: torch.dtype,
    *,
    experts: int = 16,
    hidden: int = 48,
    intermediate: int = 80,
) -> Tensors:
    rng = np.random.default_rng(num_tokens + experts)
    shapes = {
        "x": (num_tokens, hidden),
        "router_logits": (num_tokens, experts),
        "gate_up": (experts, 2 * intermediate, hidden),
        "down": (experts, hidden, intermediate),
    }
    # an expert's three products keep the size of x
    sizes = {"gate_up": hidden**-0.5, "down": intermediate**-0.5}
    return {
        name: torch.from_numpy(rng.standard_normal(s) * sizes.get(name, 1)).to(DEVICE, dtype)
        for name, s in shapes.items()
    }


def in_numpy(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.double().cpu().numpy() for name, tensor in tensors.items()}


class Check:
    """Compares the kernels with both oracles; the limit follows plain PyTorch's own error."""

    def __init__(self, oracle: Callable[..., Any], error: Callable[..., float]) -> None:
        self.oracle, self.error = oracle, error

    def __call__(
        self, tensors: Tensors, top_k: int, *, wide: Tensors | None = None, **options: Any
    ) -> torch.Tensor:
        y = sparse_moe(**tensors, top_k=top_k, **options)
        twin = naive_sparse_moe(**tensors, top_k=top_k)
        truth = self.oracle(in_numpy(wide or tensors), top_k)
        assert (y.dtype, y.shape) == (twin.dtype, twin.shape)
        own, plain = (self.error(t.double().cpu().numpy(), truth) for t in (y, twin))
        assert own <= (2e-6 if y.dtype == torch.float32 else 2 * plain), f"plain has {plain}"
        assert self.error(y.double().cpu().numpy(), twin.double().cpu().numpy()) <= own + plain
        return y


@pytest.fixture
def check(moe_oracle: Callable[..., Any], relative_rms: Callable[..., float]) -> Check:
    return Check(moe_oracle, relative_rms)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 17, 63, 64, 65])
def test_kernels_equal_the_twin_and_float64(
    num_tokens: int, dtype: torch.dtype, check: Check
) -> None:
    check(make(num_tokens, dtype, experts=16 if num_tokens in {3, 65} else 4), 2)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("num_tokens", [3, 65], ids=["decode", "grouped"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_any_top_k_over_many_tiles(
    top_k: int, num_tokens: int, dtype: torch.dtype, check: Check
) -> None:
    check(make(num_tokens, dtype, experts=4, hidden=64), top_k, tiles=SMALL_TILES)


@pytest.mark.parametrize("num_tokens", [3, 65], ids=["decode", "grouped"])
def test_reductions_that_no_block_divides(num_tokens: int, check: Check) -> None:
    tensors = make(num_tokens, torch.float32, experts=3, hidden=37, intermediate=53)
    check(tensors, 2, tiles=SMALL_TILES)


def test_a_reduction_in_several_parts(check: Check) -> None:
    tensors = make(2, torch.float32, experts=2, hidden=16, intermediate=2100)
    check(tensors, 1)


@pytest.mark.parametrize("num_tokens", [9, 65], ids=["decode", "grouped"])
@pytest.mark.parametrize("favoured", [[3], [0, 15]], ids=["one-takes-all", "first-and-last"])
def test_experts_may_be_empty(favoured: list[int], num_tokens: int, check: Check) -> None:
    tensors = make(num_tokens, torch.float32)
    tensors["router_logits"][:, favoured] += 40
    check(tensors, len(favoured), tiles=SMALL_TILES)


def test_an_expert_may_have_more_row_tiles_than_run_side_by_side(check: Check) -> None:
    tiles = SMALL_TILES | {"grouped_float32": Tile(16, 64, 32, 128, 4, 3)}
    tensors = make(150, torch.float32, experts=2)
    tensors["router_logits"][:, 1] += 40
    check(tensors, 1, tiles=tiles)


def test_equal_logits_take_the_lowest_experts(check: Check) -> None:
    tensors = make(20, torch.float32, experts=4)
    tensors["router_logits"][:] = 1
    y = check(tensors, 2, tiles=SMALL_TILES)
    others = {name: t.clone() for name, t in tensors.items()}
    others["gate_up"][2:] = torch.nan
    assert torch.equal(sparse_moe(**others, top_k=2, tiles=SMALL_TILES), y)


@pytest.mark.parametrize("num_tokens", [16, 40], ids=["decode", "grouped"])
def test_runs_repeat_bit_for_bit_and_tokens_do_not_see_each_other(num_tokens: int) -> None:
    tensors = make(num_tokens, torch.bfloat16, experts=3)
    y = sparse_moe(**tensors, top_k=2, tiles=SMALL_TILES)
    assert torch.equal(sparse_moe(**tensors, top_k=2, tiles=SMALL_TILES), y)
    order = torch.arange(num_tokens - 1, -1, -1)
    turned = tensors | {name: tensors[name][order] for name in ("x", "router_logits")}
    assert torch.equal(sparse_moe(**turned, top_k=2, tiles=SMALL_TILES), y[order])
    if num_tokens == 16:
        alone = tensors | {name: tensors[name][5:6] for name in ("x", "router_logits")}
        assert torch.equal(sparse_moe(**alone, top_k=2, tiles=SMALL_TILES), y[5:6])


FORMATS = {"int8": (quantise_int8, dequantise_int8), "int4": (quantise_int4, dequantise_int4)}


def quantised(tensors: Tensors, format_: str) -> tuple[Tensors, Tensors]:
    """Return the inputs with quantised experts, and with what these stand for."""
    quantise, dequantise = FORMATS[format_]
    stored, wide = dict(tensors), dict(tensors)
    for name in ("gate_up", "down"):
        codes, scales = quantise(tensors[name].float().cpu().numpy())
        stored[name] = torch.from_numpy(codes).to(DEVICE)
        stored[f"{name}_scales"] = torch.from_numpy(scales).to(DEVICE)
        wide[name] = torch.from_numpy(dequantise(codes, scales))  # type: ignore[operator]
    return stored, wide


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("num_tokens", [3, 33], ids=["decode", "grouped"])
@pytest.mark.parametrize("format_", FORMATS)
def test_quantised_experts_equal_what_they_stand_for(
    format_: str, num_tokens: int, dtype: torch.dtype, check: Check
) -> None:
    # both reductions end in a short group
    tensors = make(num_tokens, dtype, experts=3, hidden=160, intermediate=160)
    stored, wide = quantised(tensors, format_)
    check(stored, 2, wide=wide, tiles=SMALL_TILES if dtype == torch.float32 else TILES)


def guarded(tensors: Tensors) -> Tensors:
    """Return the same, each between NaN, or codes as large as can be."""
    found = {}
    for name, tensor in tensors.items():
        poison = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
        around = torch.full((tensor.numel() + 8192,), poison, dtype=tensor.dtype, device=DEVICE)
        inside = around[4096:-4096].view(tensor.shape)
        found[name] = inside.copy_(tensor)
    return found


@pytest.mark.parametrize(
    "num_tokens",
    [1, 2, 15, 17, 64, 65, *(pytest.param(n, marks=pytest.mark.slow) for n in (129, 300))],
)
@pytest.mark.parametrize("format_", FORMATS)
def test_quantised_experts_of_odd_sizes_and_one_without_tokens(
    format_: str, num_tokens: int, check: Check
) -> None:
    sizes = {"int8": (80, 112), "int4": (96, 160)}[format_]
    tensors = make(num_tokens, torch.bfloat16, experts=5, hidden=sizes[0], intermediate=sizes[1])
    tensors["router_logits"][:, 4] -= 40
    stored, wide = quantised(tensors, format_)
    y = check(guarded(stored), 2, wide=wide)
    # what nobody asks for may hold anything
    stored["gate_up_scales"][4] = stored["down_scales"][4] = torch.nan
    assert torch.equal(sparse_moe(**guarded(stored), top_k=2), y)


@pytest.mark.parametrize("num_tokens", [15, 17, 65])
@pytest.mark.parametrize("format_", FORMATS)
def test_quantised_experts_of_which_one_takes_all(
    format_: str, num_tokens: int, check: Check
) -> None:
    tensors = make(num_tokens, torch.float16, experts=4, hidden=96, intermediate=160)
    tensors["router_logits"][:, 3] += 40
    stored, wide = quantised(tensors, format_)
    check(guarded(stored), 1, wide=wide)


@pytest.mark.parametrize("num_tokens", [3, 33], ids=["decode", "grouped"])
def test_no_tokens_and_poison_beyond_the_chosen_experts(num_tokens: int) -> None:
    tensors = make(num_tokens, torch.float32, experts=4)
    tensors["router_logits"][:, :2] += 40
    tensors["down"][2:] = torch.nan
    assert sparse_moe(**tensors, top_k=2).isfinite().all()
    nothing = tensors | {name: tensors[name][:0] for name in ("x", "router_logits")}
    assert sparse_moe(**nothing, top_k=2).shape == (0, 48)


@pytest.mark.parametrize("num_tokens", [3, 33], ids=["decode", "grouped"])
def test_broken_mathematics_is_noticed(
    num_tokens: int, moe_oracle: Callable[..., Any], relative_rms: Callable[..., float]
) -> None:
    tensors = make(num_tokens, torch.float32, experts=4)
    y = sparse_moe(**tensors, top_k=2).numpy(force=True)
    renormalised = moe_oracle(in_numpy(tensors), 2, renormalise=True)
    assert relative_rms(y, renormalised) > 0.1
    swapped = tensors | {"gate_up": tensors["gate_up"].roll(80, dims=1)}
    assert relative_rms(y, moe_oracle(in_numpy(swapped), 2)) > 0.1
    assert relative_rms(y, moe_oracle(in_numpy(tensors), 1)) > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"router_logits": torch.zeros(3, 5)}, r"'router_logits' must be \(\[3, 4\], 'float32'\)"),
        ({"down": torch.zeros(4, 48, 80).half()}, r"'down' must be .*'float32'\), got .*'float16'"),
        ({"gate_up": torch.zeros(4, 160, 48).half()}, r"'gate_up' must be .*'float32'"),
        ({"gate_up": torch.zeros(4, 160, 48).char()}, r"'gate_up_scales' must be .*got None"),
        ({"down_scales": torch.zeros(4, 48)}, r"'down_scales' must be None"),
        ({"gate_up": torch.zeros(4, 160, 24).byte()}, r"multiples of 32, got 48 and 80; use int8"),
    ],
    ids=["experts", "dtype", "gate-up-dtype", "no-scales", "scales-for-nothing", "int4-of-48"],
)
def test_inputs_that_disagree_are_refused(change: Tensors, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        sparse_moe(**(make(3, torch.float32, experts=4) | change), top_k=2)


def combine(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    num_tokens, top_k = weights.shape
    parts, _, hidden = outputs.shape
    y = torch.full((num_tokens, hidden), torch.nan, dtype=weights.dtype, device=DEVICE)
    KERNELS["combine_slots"][num_tokens, 2, 1](
        outputs.to(DEVICE),
        weights.to(DEVICE),
        y,
        num_tokens,
        hidden,
        top_k,
        parts,
        block_columns=32,
    )
    return y.cpu()


def ascending(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    slots = outputs.view(weights.shape[0], weights.shape[1], -1)
    y = torch.zeros_like(slots[:, 0])
    for k in range(weights.shape[1]):
        y = y + slots[:, k] * weights[:, k, None]
    return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_slots_are_summed_in_ascending_order_and_rounded_each_time(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(1, 7 * 4, 48, generator=generator).to(dtype)
    weights = torch.rand(7, 4, generator=generator).to(dtype)
    y = combine(outputs, weights)
    assert torch.equal(y, ascending(outputs, weights))
    reversed_ = outputs.view(1, 7, 4, 48).flip(2).reshape(1, 28, 48)
    assert not torch.equal(y, ascending(reversed_, weights.flip(1))), "order does not show"


def test_parts_are_summed_in_float32_before_the_weight() -> None:
    generator = torch.Generator().manual_seed(6)
    outputs = torch.randn(3, 5 * 2, 48, generator=generator)
    weights = torch.rand(5, 2, generator=generator)
    whole = (outputs[0] + outputs[1] + outputs[2])[None]
    torch.testing.assert_close(combine(outputs, weights), ascending(whole, weights))
