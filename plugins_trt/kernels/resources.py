"""Resources of each kernel, also for a GPU that this machine lacks: registers, memory, spills, loops.

    python -m longllava_trt.plugins_trt.kernels.resources [--arch 80] [--dtype bf16]

compiles every kernel ahead of time with Triton's own assembler, and prints a table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longllava_trt.core.dtypes import FLOATS
from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.core.weight_formats import CODEC_NAMES
from longllava_trt.plugins_trt.kernels.cached_attention_variants import list_plugin_variants
from longllava_trt.plugins_trt.kernels.census import PRODUCTS, count_loops, matrix_loop
from longllava_trt.plugins_trt.kernels.sparse_moe_variants import list_variants as list_moe_variants
from longllava_trt.plugins_trt.kernels.variants import list_variants
from longllava_trt.plugins_trt.launch_plans.plan import Variant

__all__ = ["Resources", "compile_kernel", "list_kernels", "measure"]

# pinned: Triton announces that its default changes
_OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a multiprocessor that one kernel takes."""

    threads: int
    registers: int
    """Registers of one thread."""
    shared_bytes: int
    """Shared memory of one program."""
    spilled_bytes: int
    """Bytes that one thread writes to local memory and reads back; should be 0."""
    loop: Counter[str] | None
    """Instructions of the loop that multiplies matrices; None if tensor cores multiply none."""
    has_wide_copies: bool
    """Whether global memory is copied to shared memory 16 bytes at once."""


def compile_kernel(variant: Variant, *, arch: int) -> Any:
    """Compile for any GPU, also one that this machine lacks; the result's `asm` has `ptx`, `cubin`.

    Raises:
        LongLLaVAError: If this process interprets kernels, so that it cannot compile them.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(variant.kernel, triton.runtime.JITFunction):
        raise LongLLaVAError(
            f"compile_kernel: expected a compilable '{variant.name}', got an interpreted one; "
            "start again without TRITON_INTERPRET in the environment"
        )
    names = list(variant.signature)
    source = ASTSource(
        variant.kernel,
        variant.signature,
        constexprs=variant.blocks,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **_OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(variant: Variant, *, arch: int) -> Resources:
    """Compile a kernel and return the resources that the assembler reports.

    Raises:
        LongLLaVAError: As for `compile_kernel`.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    compiled = compile_kernel(variant, arch=arch)
    ptx = compiled.asm["ptx"]
    target = re.search(r"^\.target (\w+)", ptx, flags=re.MULTILINE)
    assert target, "Bug: PTX without a target"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(arch).path, "--verbose", f"--gpu-name={target[1]}", str(file)]
        report = subprocess.run(
            [*command, "-o", str(file.with_suffix(".cubin"))],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", report)
    assert registers, f"Bug: ptxas says nothing of registers: {report}"
    return Resources(
        threads=32 * variant.num_warps,
        registers=int(registers[1]),
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        loop=matrix_loop(count_loops(compiled.asm["cubin"])),
        has_wide_copies="cp.async.cg" in ptx,
    )


def list_kernels(dtype: Literal["fp32", "fp16", "bf16"], *, arch: int) -> list[Variant]:
    """Return every kernel of the published model's operators.

    Args:
        dtype: Triton's name of T.
        arch: Compute capability: 80 is 8.0.
    """
    variants = {variant.name: variant for variant in list_variants(dtype)}
    for weights in CODEC_NAMES:
        for variant in list_moe_variants(dtype, weights):
            variants.setdefault(variant.name, variant)
    attention = list_plugin_variants(dtype, arch=arch, head_dim=128, group=4)
    return [*variants.values(), *attention]


def _table(variants: Iterable[Variant], arch: int) -> Iterable[str]:
    numbers = ("threads", "registers", "shared bytes", "spilled bytes", "loop", "products")
    yield f"| kernel | {' | '.join((*numbers, 'LDSM', 'I2F'))} |"
    yield "| --- |" + " ---: |" * 8
    for variant in variants:
        r = measure(variant, arch=arch)
        cells: list[object] = [r.threads, r.registers, r.shared_bytes, r.spilled_bytes]
        if r.loop is not None:
            products = sum(r.loop[name] for name in PRODUCTS)
            cells += [r.loop.total(), products, r.loop["LDSM"], r.loop["I2F"]]
        cells += [""] * (8 - len(cells))
        yield f"| `{variant.name}` | {' | '.join(map(str, cells))} |"


def _main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m longllava_trt.plugins_trt.kernels.resources")
    parser.add_argument("--arch", type=int, default=80, help="compute capability (default 80)")
    parser.add_argument("--dtype", choices=[d.triton for d in FLOATS], default="bf16", help="T")
    args = parser.parse_args(argv)
    variants = list_kernels(args.dtype, arch=args.arch)
    for line in _table(variants, args.arch):
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
