"""CachedAttention's kernels against their twin and against float64."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from longllava_trt.core.errors import ContractError
from longllava_trt.plugins_trt.launch_plans.cached_attention import (
    AttentionShape,
    AttentionTiles,
    ChunkTile,
    DecodeTile,
    plan_cached_attention,
)

pytestmark = pytest.mark.usefixtures("bfloat16_is_multiplied")

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIMIT = 2e-6
"""Relative error of float32 arithmetic."""
WRONG = 100 * LIMIT
SMALL = AttentionTiles(ChunkTile(32, 16, 4, 2), DecodeTile(16, 4, 2, 1), 10)
"""Several tiles and parts of a small problem; whatever the architecture, what fits it."""

WIDE = AttentionTiles(ChunkTile(128, 128, 4, 1), DecodeTile(128, 4, 1, 1), 10)
LONG = {"tiles": WIDE} if INTERPRETED else {}
"""The interpreter takes milliseconds a block, whatever its size."""

Tensors = dict[str, Any]


def make(
    past: list[int],
    seq_len: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    dtype: str = "fp32",
    rotary: bool = False,
    room: int = 5,
    spread: float = 1.0,
) -> Tensors:
    """Return views of one fused product, caches full of NaN beyond the lengths, and a spare slot."""
    rng = np.random.default_rng(seq_len + sum(past))
    widths = [n * head_dim for n in (heads, kv_heads, kv_heads)]
    fused = torch.from_numpy(rng.standard_normal((len(past), seq_len, sum(widths))) * spread)
    fused = fused.to(DEVICE, DTYPES[dtype])
    q, k, v = (x.unflatten(-1, (-1, head_dim)) for x in fused.split(widths, dim=-1))
    capacity = max(past) + seq_len + room
    caches = []
    for _ in range(2):
        filled = rng.standard_normal((len(past) + 1, kv_heads, capacity, head_dim)) * spread
        for row, length in enumerate([*past, 0]):
            filled[row, :, length:] = np.nan
        caches.append(torch.from_numpy(filled).to(DEVICE, DTYPES[dtype]))
    tensors = {"q": q, "k": k, "v": v, "key_cache": caches[0], "value_cache": caches[1]}
    tensors["past_len"] = torch.tensor(past, dtype=torch.int32, device=DEVICE)
    if rotary:
        angles = angles_of(capacity, head_dim)
        tensors |= {n: getattr(angles, n)().float().to(DEVICE) for n in ("cos", "sin")}
    return tensors


def angles_of(capacity: int, head_dim: int) -> torch.Tensor:
    rates = 10_000.0 ** (-torch.arange(head_dim // 2).double() * 2 / head_dim)
    return torch.arange(capacity).double()[:, None] * rates


def copied(tensors: Tensors) -> Tensors:
    """Return fresh caches, the rest as it is: views stay views."""
    return {n: t.clone() if n.endswith("cache") else t for n, t in tensors.items()}


def attend(tensors: Tensors, **options: Any) -> torch.Tensor:
    from longllava_trt.plugins_trt.kernels.cached_attention import cached_attention

    y: torch.Tensor = cached_attention(**tensors, **options)
    return y


def naive(tensors: Tensors) -> torch.Tensor:
    from longllava_trt.plugins_trt.kernels.cached_attention_naive import naive_cached_attention

    return naive_cached_attention(**tensors)


def turned(x: torch.Tensor, angles: torch.Tensor, *, interleaved: bool = False) -> torch.Tensor:
    """Multiply complex numbers: element i is real, and i + head_dim / 2 imaginary. [tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    if interleaved:
        pairs = x.unflatten(-1, (half, 2))
        real, imaginary = pairs[..., 0], pairs[..., 1]
    else:
        real, imaginary = x[..., :half], x[..., half:]
    z = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)[:, None]
    if interleaved:
        return torch.stack([z.real, z.imag], -1).flatten(-2)
    return torch.cat([z.real, z.imag], -1)


def oracle(
    tensors: Tensors,
    *,
    scale: float | None = None,
    shift: int = 0,
    interleaved: bool = False,
    roll: int = 0,
) -> torch.Tensor:
    """Attend in float64, from first principles; keywords break it on purpose."""
    t = {n: x.double().cpu() for n, x in tensors.items()}
    seq_len, heads, head_dim = t["q"].shape[1:]
    lengths = [int(n) for n in torch.roll(t["past_len"], roll)]
    angles = angles_of(t["key_cache"].shape[2], head_dim)
    found = []
    for row, past in enumerate(lengths):
        q, k = t["q"][row], t["k"][row]
        if "cos" in t:
            here = angles[past : past + seq_len]
            q, k = (turned(x, here, interleaved=interleaved) for x in (q, k))
            # as T holds them
            q, k = (x.to(tensors["q"].dtype).double() for x in (q, k))
        keys = torch.cat([t["key_cache"][row, :, :past], k.transpose(0, 1)], 1).nan_to_num()
        values = torch.cat([t["value_cache"][row, :, :past], t["v"][row].transpose(0, 1)], 1)
        group = heads // keys.shape[0]
        keys, values = (x.repeat_interleave(group, 0) for x in (keys, values.nan_to_num()))
        scores = q.transpose(0, 1) @ keys.mT * (head_dim**-0.5 if scale is None else scale)
        sees = torch.arange(past + seq_len) <= past + shift + torch.arange(seq_len)[:, None]
        weights = torch.softmax(scores.masked_fill(~sees, -torch.inf), -1).nan_to_num()
        found.append((weights @ values).transpose(0, 1))
    return torch.stack(found)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double().cpu(), expected.double().cpu()
    value = float((actual - expected).norm() / expected.norm())
    return value if np.isfinite(value) else np.inf


def check(tensors: Tensors, **options: Any) -> None:
    """Compare y with float64 and the twin, and caches with the twin's, beyond the lengths too."""
    ours, plain = copied(tensors), copied(tensors)
    expected = oracle(tensors)
    y, twin = attend(ours, **options), naive(plain)
    assert y.dtype == tensors["q"].dtype
    assert y.shape == tensors["q"].shape
    is_single = y.dtype == torch.float32
    limit = LIMIT if is_single else 2 * error(twin, expected)
    assert error(y, expected) <= limit
    assert error(y, twin) <= (LIMIT if is_single else 2 * limit)
    # a rotation may be off by the last bit: multiplied and added at once, or not
    places = 0.0 if "cos" not in tensors else torch.finfo(y.dtype).eps
    for name in ("key_cache", "value_cache"):
        torch.testing.assert_close(
            ours[name], plain[name], rtol=places, atol=places, equal_nan=True
        )


CASES = [([0, 1000, 1], n) for n in (1, 2, 63, 64, 65)] + [([1000], 1), ([1000], 65), ([0], 1)]


@pytest.mark.parametrize(("past", "seq_len"), CASES, ids=str)
def test_attention_equals_its_twin_and_float64(past: list[int], seq_len: int) -> None:
    check(make(past, seq_len, heads=2, kv_heads=1), **LONG)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("seq_len", [1, 65], ids=lambda n: f"len{n}")
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
def test_two_bytes_round_as_the_twin_does(dtype: str, seq_len: int, rotary: bool) -> None:
    check(make([130, 7], seq_len, heads=2, kv_heads=1, dtype=dtype, rotary=rotary))


@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1), (8, 2)], ids=str)
@pytest.mark.parametrize("seq_len", [1, 70], ids=lambda n: f"len{n}")
def test_any_number_of_heads(heads: tuple[int, int], seq_len: int) -> None:
    tensors = make([40, 3], seq_len, heads=heads[0], kv_heads=heads[1], head_dim=16)
    check(tensors, **(LONG if seq_len > 1 else {"tiles": SMALL}))


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128], ids=lambda n: f"d{n}")
@pytest.mark.parametrize("seq_len", [1, 70], ids=lambda n: f"len{n}")
def test_any_width_of_a_head(head_dim: int, seq_len: int) -> None:
    for rotary in (False, True):
        check(make([90], seq_len, heads=1, kv_heads=1, head_dim=head_dim, rotary=rotary), **LONG)


@pytest.mark.parametrize("past", [[0], [15], [16], [17], [90, 0, 31]], ids=str)
@pytest.mark.parametrize("seq_len", [1, 17, 65], ids=lambda n: f"len{n}")
def test_blocks_and_parts_end_anywhere(past: list[int], seq_len: int) -> None:
    check(make(past, seq_len, heads=1, kv_heads=1, head_dim=16, room=0), tiles=SMALL)


@pytest.mark.parametrize("seq_len", [15, 16], ids=lambda n: f"len{n}")
def test_queries_and_heads_are_rows_of_one_tile(seq_len: int) -> None:
    check(make([31], seq_len, heads=2, kv_heads=1, head_dim=16), tiles=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [1000, 4097], ids=lambda n: f"len{n}")
def test_long_chunks(seq_len: int) -> None:
    for past in ([0], [1000]):
        check(make(past, seq_len, heads=1, kv_heads=1), **LONG)


def test_many_sequences_are_one_step() -> None:
    past = [7 * n % 50 for n in range(17)]
    check(make(past, 1, heads=1, kv_heads=1, head_dim=16), tiles=SMALL)


def test_a_long_sequence_beside_short_ones_is_divided() -> None:
    check(make([900, 0, 3, 1], 1, heads=1, kv_heads=1, head_dim=16), tiles=SMALL)


@pytest.mark.parametrize("seq_len", [1, 33], ids=lambda n: f"len{n}")
def test_large_scores_neither_overflow_nor_vanish(seq_len: int) -> None:
    tensors = make([100], seq_len, spread=30.0)
    assert error(attend(copied(tensors)), oracle(tensors)) <= 100 * LIMIT


@pytest.mark.parametrize("seq_len", [1, 70], ids=lambda n: f"len{n}")
def test_scale_is_applied(seq_len: int) -> None:
    tensors = make([10], seq_len)
    y = attend(copied(tensors), scale=0.5)
    assert error(y, oracle(tensors, scale=0.5)) <= LIMIT
    assert error(y, oracle(tensors)) > WRONG


def test_steps_after_a_chunk_equal_one_chunk() -> None:
    whole = make([0], 80, heads=2, kv_heads=1, rotary=True)
    expected = attend(copied(whole))
    caches = copied(whole)
    found = []
    for begin, end in ((0, 70), (70, 71), (71, 76), (76, 80)):
        new = {name: whole[name][:, begin:end] for name in ("q", "k", "v")}
        past_len = torch.full_like(caches["past_len"], begin)
        found.append(attend({**caches, **new, "past_len": past_len}))
    assert error(torch.cat(found, 1), expected) <= LIMIT


def test_what_does_not_fit_is_dropped() -> None:
    tensors = make([10], 3, room=0)
    slots = tensors["key_cache"].shape[0]
    for name in ("key_cache", "value_cache"):
        tensors[name] = tensors[name][:, :, :12].contiguous().nan_to_num(7.0)
    last = tensors["key_cache"][slots - 1].clone()
    attend(tensors)
    torch.testing.assert_close(tensors["key_cache"][slots - 1], last, rtol=0, atol=0)
    new = tensors["k"][0, :2].transpose(0, 1)
    torch.testing.assert_close(tensors["key_cache"][0, :, 10:], new, rtol=0, atol=0)


@pytest.mark.parametrize("seq_len", [1, 70], ids=lambda n: f"len{n}")
@pytest.mark.parametrize(
    "broken", [{"shift": -1}, {"interleaved": True}, {"roll": 1}], ids=lambda b: next(iter(b))
)
def test_comparison_fails_when_the_oracle_is_broken(broken: Tensors, seq_len: int) -> None:
    tensors = make([40, 90], seq_len, rotary=True)
    y = attend(copied(tensors))
    assert error(y, oracle(tensors)) <= LIMIT
    assert error(y, oracle(tensors, **broken)) > WRONG


@pytest.mark.parametrize("seq_len", [1, 70], ids=lambda n: f"len{n}")
def test_a_given_workspace_is_used_and_inputs_are_not_written(seq_len: int) -> None:
    tensors = make([40, 90], seq_len)
    before = {name: tensors[name].clone() for name in ("q", "k", "v", "past_len")}
    shape = AttentionShape(2, seq_len, 4, 2, 64, tensors["key_cache"].shape[2])
    spaces = plan_cached_attention(shape, tiles=SMALL)[1]
    empty = tensors["q"].new_full
    held = {space.name: empty(space.shape, torch.nan) for space in spaces}
    y = attend(copied(tensors), tiles=SMALL, workspace=held)
    assert error(y, oracle(tensors)) <= LIMIT
    assert all(buffer.isfinite().any() for buffer in held.values())
    assert all(torch.equal(tensors[name], kept) for name, kept in before.items())


def test_what_disagrees_is_refused_all_at_once() -> None:
    tensors = make([4], 2)
    tensors["k"] = tensors["k"].half()
    tensors["value_cache"] = tensors["value_cache"].transpose(1, 2)
    tensors["past_len"] = tensors["past_len"].long()
    with pytest.raises(ContractError) as caught:
        attend(tensors, scale=-1.0)
    for part in ("'k'", "'value_cache'", "'past_len'", "scale must be above zero"):
        assert part in str(caught.value)
