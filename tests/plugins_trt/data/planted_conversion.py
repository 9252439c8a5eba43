"""A kernel whose loop converts int8 to bfloat16 by I2F, for the census to find.

    python planted_conversion.py ARCH

prints the faults of its loop as JSON.
"""

from __future__ import annotations

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longllava_trt.plugins_trt.kernels.census import count_loops, find_faults, matrix_loop


@triton.jit  # type: ignore[untyped-decorator]
def convert(x: tl.tensor, w: tl.tensor, y: tl.tensor, length: int) -> None:
    rows, depth = tl.arange(0, 64), tl.arange(0, 64)
    total = tl.zeros([64, 64], tl.float32)
    for k in range(0, length, 64):
        a = tl.load(x + rows[:, None] * length + k + depth[None, :])
        b = tl.load(w + rows[:, None] * length + k + depth[None, :])
        total = tl.dot(a, tl.trans(b.to(tl.bfloat16)), total)
    tl.store(y + rows[:, None] * 64 + depth[None, :], total)


if __name__ == "__main__":
    types = {"x": "*bf16", "w": "*i8", "y": "*fp32", "length": "i32"}
    source = ASTSource(convert, types, attrs={(i,): [["tt.divisibility", 16]] for i in range(4)})
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    loop = matrix_loop(count_loops(compiled.asm["cubin"]))
    assert loop is not None
    sys.stdout.write(json.dumps(find_faults(loop, is_large=False)))
