"""Codes become numbers exactly: the PTX's steps in NumPy, and the kernels' own functions.

Triton's interpreter runs the portable forms; with TRITON_INTERPRET=0 a GPU runs the PTX itself.
"""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from longllava_trt.plugins_trt.kernels.sparse_moe_codes import int4_values, int8_values

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ALL_INT8 = np.arange(-128, 128, dtype=np.int8)
ALL_BYTES = np.arange(256, dtype=np.uint8)


def permute(word: np.ndarray, other: int, selector: int) -> np.ndarray:
    """Do what ``prmt.b32`` does, without its signs: choose four of eight bytes."""
    pool = np.concatenate(
        [word[:, None].view(np.uint8), np.full_like(word, other)[:, None].view(np.uint8)], axis=1
    )
    nibbles = [selector >> 4 * i & 15 for i in range(4)]
    return np.ascontiguousarray(pool[:, nibbles]).view(np.uint32)[:, 0]


def halves(word: np.ndarray, dtype: type) -> np.ndarray:
    """Return a register's two numbers. [words, 2], float64: wide enough for exact products."""
    return np.ascontiguousarray(word)[:, None].view(dtype).astype(np.float64)


def bfloat16_steps(words: np.ndarray) -> np.ndarray:
    found = []
    for selector in (0x4140, 0x4342):
        raised = permute(words, 0x43, selector)
        low, sign = raised & np.uint32(0xFF7FFF7F), raised & np.uint32(0xFF80FF80)
        minus = np.full_like(words, 0xBF80BF80)
        bf16 = ml_dtypes.bfloat16
        product = halves(sign, bf16) * halves(minus, bf16) + halves(low, bf16)
        found.append(product.astype(bf16))
    return np.concatenate(found, axis=1)


def float16_steps(words: np.ndarray) -> np.ndarray:
    biased = words ^ np.uint32(0x80808080)
    offset = halves(np.full_like(words, 0x64806480), np.float16)
    pairs = [halves(permute(biased, 0x64, s), np.float16) for s in (0x4140, 0x4342)]
    return np.concatenate([(pair - offset).astype(np.float16) for pair in pairs], axis=1)


def float32_steps(words: np.ndarray) -> np.ndarray:
    biased = words ^ np.uint32(0x80808080)
    offset = np.array([0x4B000080], np.uint32).view(np.float32)
    wide = [permute(biased, 0x4B, s).view(np.float32) for s in (0x4550, 0x4551, 0x4552, 0x4553)]
    return np.stack([each - offset for each in wide], axis=1)


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [(bfloat16_steps, "bf16"), (float16_steps, "fp16"), (float32_steps, "fp32")],
    ids=["bf16", "fp16", "fp32"],
)
def test_ptx_makes_every_int8_code_exactly(steps: object, dtype: str) -> None:
    # each code at each of a word's four places
    codes = np.stack([np.roll(ALL_INT8, 37 * place) for place in range(4)], axis=1)
    values = steps(np.ascontiguousarray(codes).view(np.uint32)[:, 0])  # type: ignore[operator]
    assert values.itemsize == DTYPES[dtype].itemsize
    assert np.array_equal(values.astype(np.float64), codes)


def test_ptx_makes_every_int4_code_exactly() -> None:
    packed = np.arange(2**16, dtype=np.uint32)
    masks, raised = (15, 15 << 4, 15 << 8, 15 << 12), (0x4B, 0x49, 0x47, 0x45)
    offsets = (0x4B000008, 0x49000080, 0x47000800, 0x45008000)
    for place in range(4):
        bits = packed & np.uint32(masks[place]) | np.uint32(raised[place] << 24)
        value = bits.view(np.float32) - np.array([offsets[place]], np.uint32).view(np.float32)
        assert np.array_equal(value, (packed >> 4 * place & 15).astype(np.float32) - 8)


def test_a_wrong_step_is_noticed() -> None:
    words = np.ascontiguousarray(ALL_INT8.reshape(-1, 4)).view(np.uint32)[:, 0]
    right = bfloat16_steps(words).astype(np.float64)
    assert np.array_equal(right.reshape(-1), ALL_INT8)
    # without the sign's own step, as if bfloat16 had room for eight bits
    raised = halves(permute(words ^ np.uint32(0x80808080), 0x43, 0x4140), ml_dtypes.bfloat16)
    assert not np.array_equal(raised - 256, right[:, :2])


@triton.jit  # type: ignore[untyped-decorator]
def int8_kernel(codes: tl.tensor, values: tl.tensor) -> None:
    at = tl.arange(0, 256)
    tl.store(values + at, int8_values(tl.load(codes + at), values.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def int4_kernel(packed: tl.tensor, values: tl.tensor) -> None:
    at = tl.arange(0, 2)[:, None] * 128 + tl.arange(0, 128)[None, :]
    wide = tl.arange(0, 2)[:, None] * 256 + tl.arange(0, 256)[None, :]
    tl.store(values + wide, int4_values(tl.load(packed + at)))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_kernels_make_every_int8_code_exactly(dtype: torch.dtype) -> None:
    values = torch.full((256,), torch.nan, dtype=dtype, device=DEVICE)
    int8_kernel[1,](torch.from_numpy(ALL_INT8).to(DEVICE), values)
    assert np.array_equal(values.double().cpu().numpy(), ALL_INT8)


def test_kernels_make_every_int4_code_exactly() -> None:
    values = torch.full((2, 256), torch.nan, device=DEVICE)
    int4_kernel[1,](torch.from_numpy(ALL_BYTES).to(DEVICE), values)
    expected = np.stack([ALL_BYTES & 15, ALL_BYTES >> 4], axis=1).astype(np.float32) - 8
    assert np.array_equal(values.cpu().numpy().reshape(-1), expected.reshape(-1))
