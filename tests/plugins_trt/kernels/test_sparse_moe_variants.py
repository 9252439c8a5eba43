"""Kernels compiled ahead of time: they cover every launch, and fit a GPU without spilling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from longllava_trt.plugins_trt.kernels.sparse_moe_variants import list_variants
from longllava_trt.plugins_trt.launch_plans.sparse_moe import MoeShape, plan_launches

ROOT = Path(__file__).parents[3]

# a process of its own: what is interpreted in this one cannot be compiled in it
COMPILE = """
import json, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from longllava_trt.plugins_trt.kernels.sparse_moe_variants import list_variants

dtype, arch = sys.argv[1], int(sys.argv[2])
ptxas = triton.knobs.nvidia.ptxas.path if arch < 90 else triton.knobs.nvidia.ptxas_blackwell.path
found = {}
for weights in ("none", "int8", "int4"):
    for v in list_variants(dtype, weights):
        names = list(v.signature)
        source = ASTSource(v.kernel, v.signature, constexprs=v.blocks, attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name in v.aligned})
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={
            "num_warps": v.num_warps, "num_stages": v.num_stages})
        with tempfile.TemporaryDirectory() as folder:
            ptx = Path(folder, "kernel.ptx")
            ptx.write_text(kernel.asm["ptx"])
            target = re.search(r"[.]target (sm_\\w+)", kernel.asm["ptx"])[1]
            report = subprocess.run([ptxas, "--verbose", f"--gpu-name={target}", str(ptx), "-o",
                str(ptx.with_suffix(".cubin"))], capture_output=True, text=True, check=True).stderr
        found[v.name] = {
            "registers": int(re.search(r"Used (\\d+) registers", report)[1]),
            "spilled_bytes": sum(map(int, re.findall(r"(\\d+) bytes spill", report))),
            "shared_bytes": kernel.metadata.shared,
            "wide_loads": "cp.async.cg" in kernel.asm["ptx"],
        }
print(json.dumps(found))
"""


@pytest.mark.parametrize("weights", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_launch_has_a_variant(
    dtype: Literal["fp32", "fp16", "bf16"], weights: Literal["none", "int8", "int4"]
) -> None:
    variants = list_variants(dtype, weights)
    compiled = {
        (v.kernel.__name__, tuple(v.blocks.items()), v.num_warps, v.num_stages) for v in variants
    }
    assert len(compiled) + (dtype != "fp32") == len(variants), "a kernel is compiled twice"
    for num_tokens in (1, 16, 17, 100, 600, 5000):
        for experts, top_k in ((4, 2), (16, 2), (64, 8)):
            shape = MoeShape(num_tokens, 64, 160, experts, top_k)
            for launch in plan_launches(shape, itemsize=4 if dtype == "fp32" else 2):
                key = (launch.kernel, tuple(launch.blocks.items()))
                assert (*key, launch.num_warps, launch.num_stages) in compiled
                kernel = next(v for v in variants if v.kernel.__name__ == launch.kernel)
                types = list(kernel.signature.values())
                assert types == sorted(types, key=lambda t: (t[0] != "*", t == "constexpr"))
                integers = [name for name, t in kernel.signature.items() if t == "i32"]
                assert integers == list(launch.integers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "arch"), [("bf16", 80), ("fp16", 80), ("fp32", 80), ("bf16", 90), ("bf16", 120)]
)
def test_no_variant_spills(dtype: str, arch: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype, str(arch)],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [name for name, figures in found.items() if figures["spilled_bytes"]] == []
    # sm_86, sm_89 and sm_120 give a program 99 KiB, sm_80 gives 163
    assert max(figures["shared_bytes"] for figures in found.values()) <= 99 * 1024
    products = [figures for name, figures in found.items() if "decode" in name or "grouped" in name]
    assert all(figures["wide_loads"] for figures in products), "weights are loaded in small pieces"
