"""SparseMoE: codes of int8 and of int4 weights become numbers, without conversion instructions.

A conversion from integer to float takes four times as long as other arithmetic on sm_80, and would
take more time than the products. Here a code's bits become the low bits of a number with unit
steps, and one subtraction is left. Each function has two forms with equal results: PTX for GPUs, and
a portable one for Triton's interpreter, which cannot run PTX.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["int4_values", "int8_values"]

# read when the kernels are made, as Triton does
_PORTABLE = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit  # type: ignore[untyped-decorator]
def int8_values(codes: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Return codes as T, exactly.

    Args:
        codes: int8, whose last axis is a multiple of 4.
        dtype: T.
    """
    if _PORTABLE:
        values = codes.to(tl.float32).to(dtype)
    elif dtype == tl.bfloat16:
        # 128 + low seven bits, minus 128 or 256 by the sign: bfloat16 has no room for all eight
        values = tl.inline_asm_elementwise(
            """{
            .reg .b32 first, last, low0, low1, sign0, sign1, minus;
            mov.b32 minus, 0xbf80bf80;
            prmt.b32 first, $2, 0x43, 0x4140;
            prmt.b32 last, $2, 0x43, 0x4342;
            and.b32 low0, first, 0xff7fff7f;
            and.b32 low1, last, 0xff7fff7f;
            and.b32 sign0, first, 0xff80ff80;
            and.b32 sign1, last, 0xff80ff80;
            fma.rn.bf16x2 $0, sign0, minus, low0;
            fma.rn.bf16x2 $1, sign1, minus, low1;
            }""",
            "=r,=r,r",
            [codes],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    elif dtype == tl.float16:
        # 1024 + (code + 128), minus 1152
        values = tl.inline_asm_elementwise(
            """{
            .reg .b32 biased, first, last, offset;
            mov.b32 offset, 0x64806480;
            xor.b32 biased, $2, 0x80808080;
            prmt.b32 first, biased, 0x64, 0x4140;
            prmt.b32 last, biased, 0x64, 0x4342;
            sub.f16x2 $0, first, offset;
            sub.f16x2 $1, last, offset;
            }""",
            "=r,=r,r",
            [codes],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    else:
        # 2^23 + (code + 128), minus 2^23 + 128
        values = tl.inline_asm_elementwise(
            """{
            .reg .b32 biased, wide0, wide1, wide2, wide3;
            xor.b32 biased, $4, 0x80808080;
            prmt.b32 wide0, biased, 0x4b, 0x4550;
            prmt.b32 wide1, biased, 0x4b, 0x4551;
            prmt.b32 wide2, biased, 0x4b, 0x4552;
            prmt.b32 wide3, biased, 0x4b, 0x4553;
            sub.rn.f32 $0, wide0, 0f4B000080;
            sub.rn.f32 $1, wide1, 0f4B000080;
            sub.rn.f32 $2, wide2, 0f4B000080;
            sub.rn.f32 $3, wide3, 0f4B000080;
            }""",
            "=f,=f,=f,=f,r",
            [codes],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    return values


@triton.jit  # type: ignore[untyped-decorator]
def int4_values(packed: tl.tensor) -> tl.tensor:
    """Return codes less 8, exactly. [rows, 2 * bytes], float32.

    Args:
        packed: Two codes a byte, the even column's in the low nibble; ``bytes`` is a multiple of 4.
            [rows, bytes], uint8.
    """
    if _PORTABLE:
        even, odd = (packed & 15).to(tl.float32) - 8.0, (packed >> 4).to(tl.float32) - 8.0
    else:
        # the code stays where it is: 2^23 has unit steps for bits 0 to 3, 2^19 for 4 to 7, ...
        even, odd = tl.inline_asm_elementwise(
            """{
            .reg .b32 codes, c0, c1, c2, c3;
            cvt.u32.u16 codes, $4;
            lop3.b32 c0, codes, 0x0000000f, 0x4b000000, 0xea;
            lop3.b32 c1, codes, 0x000000f0, 0x49000000, 0xea;
            lop3.b32 c2, codes, 0x00000f00, 0x47000000, 0xea;
            lop3.b32 c3, codes, 0x0000f000, 0x45000000, 0xea;
            sub.rn.f32 $0, c0, 0f4B000008;
            sub.rn.f32 $2, c1, 0f49000080;
            sub.rn.f32 $1, c2, 0f47000800;
            sub.rn.f32 $3, c3, 0f45008000;
            }""",
            "=f,=f,=f,=f,h",
            [packed],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=2,
        )
    return tl.interleave(even, odd)
