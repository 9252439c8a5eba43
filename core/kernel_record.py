"""Record of one stage's engine, for each profile: its kernels in order, and their memory.

In engine.json a tensor is one line of text, such as `linear bfloat16 [1,-1,512] [-1,512,1]`: name,
dtype, shape and strides. A decoder has about a thousand tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BudgetExcess", "Kernel", "KernelTensor", "ProfileKernels", "is_launch"]

_NO_LAUNCH = frozenset({"signal", "wait", "shape_call", "ShapeHostToDevice"})
"""Kinds that order kernels or work on the host."""


@dataclass(frozen=True, slots=True)
class KernelTensor:
    """A tensor that a kernel reads or writes."""

    name: str
    """Name in the network, if it has one there."""
    dtype: str
    shape: tuple[int, ...]
    """Sizes; -1 if a size is known only at run time."""
    strides: tuple[int, ...]
    """In elements; none where TensorRT does not say."""

    def __str__(self) -> str:
        """Return the line in engine.json."""
        return f"{self.name} {self.dtype} {_listed(self.shape)} {_listed(self.strides)}"

    @classmethod
    def parse(cls, line: str) -> KernelTensor:
        """Read the line in engine.json."""
        name, dtype, shape, strides = line.rsplit(" ", 3)
        return cls(name, dtype, _numbers(shape), _numbers(strides))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One step that TensorRT takes."""

    name: str
    kind: str
    """TensorRT's word, such as `gemm`, `runtime_fusion`, `kgen` (generated kernel), `custom_layer`
    (a plugin) or `copy`."""
    inputs: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    """A plugin's workspaces among them."""
    tactic: str
    """Empty where the kernel is chosen when the engine is loaded."""
    nodes: tuple[str, ...]
    """Nodes of the graph that it comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetExcess:
    """A budget that is exceeded for a reason that is known."""

    budget: str
    excess: str
    """Name of what exceeds it, and by how much."""
    reason: str
    cure: str
    """Change that will bring it within the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKernels:
    """Kernels that TensorRT made for one profile."""

    scratch_bytes: int
    """Largest memory that any step works in besides its inputs and outputs."""
    activation_bytes: int
    """Bytes that an execution context takes: scratch, and tensors between steps."""
    kernels: tuple[Kernel, ...]
    excesses: tuple[BudgetExcess, ...] = ()

    @property
    def launches(self) -> int:
        """Number of kernels and copies of one call."""
        return len(self.kernels)

    def kinds(self) -> Mapping[str, int]:
        """Count kernels by kind."""
        return Counter(kernel.kind for kernel in self.kernels)

    def to_json(self) -> dict[str, Any]:
        """Return what engine.json holds."""
        return {
            "scratch_bytes": self.scratch_bytes,
            "activation_bytes": self.activation_bytes,
            "kernels": [_kernel_to_json(kernel) for kernel in self.kernels],
            "excesses": [
                {field: getattr(e, field) for field in BudgetExcess.__slots__}
                for e in self.excesses
            ],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ProfileKernels:
        """Read what `to_json` returned."""
        return cls(
            scratch_bytes=raw["scratch_bytes"],
            activation_bytes=raw["activation_bytes"],
            kernels=tuple(map(_kernel_from_json, raw["kernels"])),
            excesses=tuple(BudgetExcess(**excess) for excess in raw["excesses"]),
        )


def is_launch(kind: str) -> bool:
    """Tell whether a step of this kind is launched on the GPU."""
    return kind not in _NO_LAUNCH


def _kernel_to_json(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "kind": kernel.kind,
        "inputs": list(map(str, kernel.inputs)),
        "outputs": list(map(str, kernel.outputs)),
        "tactic": kernel.tactic,
        "nodes": list(kernel.nodes),
    }


def _kernel_from_json(raw: Mapping[str, Any]) -> Kernel:
    return Kernel(
        name=raw["name"],
        kind=raw["kind"],
        inputs=tuple(map(KernelTensor.parse, raw["inputs"])),
        outputs=tuple(map(KernelTensor.parse, raw["outputs"])),
        tactic=raw["tactic"],
        nodes=tuple(raw["nodes"]),
    )


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _numbers(listed: str) -> tuple[int, ...]:
    inside = listed.strip("[]")
    return tuple(map(int, inside.split(","))) if inside else ()
