"""Machine code of compiled kernels: what is in the loop that multiplies matrices.

nvdisasm, which Triton's wheel holds, takes cubins of GPUs that this machine lacks. A loop is the
code between a label and a jump back to it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PRODUCTS", "count_loops", "find_faults", "matrix_loop"]

PRODUCTS = ("HMMA", "HGMMA")
"""Products of tensor cores: of a warp, and of four warps on sm_90."""
_CONVERSIONS = ("I2F", "I2FP")
"""From integers to floats; I2F takes four times as long as other arithmetic on sm_80."""
_LOCAL = ("LDL", "STL")
_MOST_LOADS = 0.5
"""Loads of matrices (LDSM) for a product: while four warps of sm_80 do an HMMA each, shared memory
serves two loads."""

_LABEL = re.compile(r"\s*\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")
_JUMP = re.compile(r"BRA(?:\.\w+)*\s+.*`\(\.(L_x_\d+)\)")
_OPCODE = re.compile(r"(?:@!?U?P[T\d]+\s+)?(\w+)")


def count_loops(cubin: bytes) -> list[Counter[str]]:
    """Return the number of instructions by opcode, without suffixes, of each loop.

    An outer loop counts what is in its inner ones as well.
    """
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in _disassemble(cubin).splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.search(line):
            code.append(instruction[1])
    loops = []
    for end, text in enumerate(code):
        jump = _JUMP.search(text)
        begin = labels.get(jump[1], end) if jump else end
        if begin < end:
            loops.append(_count(code[begin : end + 1]))
    return loops


def matrix_loop(loops: Iterable[Counter[str]]) -> Counter[str] | None:
    """Return the loop with most products of tensor cores, and of these the shortest; if there are any."""

    def worth(loop: Counter[str]) -> tuple[int, int]:
        return _sum(loop, PRODUCTS), -loop.total()

    found = max(loops, key=worth, default=None)
    return found if found is not None and _sum(found, PRODUCTS) else None


def find_faults(loop: Counter[str], *, is_large: bool) -> list[str]:
    """Return what should not be in a loop that multiplies matrices, as text.

    Args:
        loop: As `count_loops` has it.
        is_large: Whether its tile is large enough that products, not memory, limit it.
    """
    faults = [f"{loop[name]} {name}" for name in (*_CONVERSIONS, *_LOCAL) if loop[name]]
    products = loop["HMMA"]
    if is_large and loop["LDSM"] > _MOST_LOADS * products and not loop["HGMMA"]:
        faults.append(f"{loop['LDSM']} LDSM for {products} HMMA")
    return faults


def _sum(loop: Counter[str], names: Iterable[str]) -> int:
    return sum(loop[name] for name in names)


def _count(code: Iterable[str]) -> Counter[str]:
    opcodes = (_OPCODE.match(text) for text in code)
    return Counter(opcode[1] for opcode in opcodes if opcode)


def _disassemble(cubin: bytes) -> str:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
