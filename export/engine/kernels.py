"""The kernels that TensorRT chose, read from its log of the build; this needs no GPU.

With `ProfilingVerbosity.DETAILED` TensorRT-RTX lists each step of the finished engine, profile
after profile, and the memory of each profile. An existing engine does not tell them unless a GPU
loads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longllava_trt.core.dtypes import DTYPES
from longllava_trt.core.errors import ExportError
from longllava_trt.core.kernel_record import Kernel, KernelTensor, ProfileKernels, is_launch

__all__ = ["read_kernels", "tells_kernels"]

_STEP = re.compile(r"Name: (.*?), LayerType: (\w+), Inputs: \[(.*)$")
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[^\]]*)\]"
    r"(?:, Strides: \[(?P<strides>[^\]]*)\])?.*?Datatype: (?P<dtype>\w+)"
)
_TACTIC = re.compile(r"Tactic(?:Name|Value): ([^,]*)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_PROGRAM = re.compile(r"_myl(\d+)(?:_\d+)?$")
"""Kernels of one compiled program end with its number; a program belongs to one profile."""
_BEGIN = re.compile(r"Constructing optimization profile number (\d+) \[")
_BYTES = re.compile(r"(Max Scratch Memory|Total Activation Memory): (\d+) bytes")
_DTYPES = {dtype.tensorrt.lower(): dtype.name for dtype in DTYPES.values()}


@dataclass(frozen=True, slots=True)
class _Step:
    kernel: Kernel
    program: str | None
    """Number of its compiled program."""
    profile: int | None
    """The tensors that the log names."""


def tells_kernels(line: str) -> bool:
    """Return whether `read_kernels` needs a line of TensorRT's log."""
    return ", LayerType: " in line or bool(_BEGIN.search(line) or _BYTES.search(line))


def read_kernels(
    lines: Iterable[str], profiles: Sequence[str], *, stage: str
) -> Mapping[str, ProfileKernels]:
    """Read kernels and memory of each profile.

    Args:
        lines: TensorRT's log of one build, in order.
        profiles: Names of the profiles, in the engine's order.
        stage: Name of the stage in the error.

    Raises:
        ExportError: If TensorRT did not list them for every profile, so that no check is possible.
    """
    steps: list[_Step] = []
    memory: list[dict[str, int]] = [{} for _ in profiles]
    current = 0
    for line in lines:
        if begin := _BEGIN.search(line):
            current = int(begin[1])
        elif nbytes := _BYTES.search(line):
            memory[current][nbytes[1]] = int(nbytes[2])
        elif found_step := _STEP.search(line):
            steps.append(_read_step(found_step))
    of_program = {s.program: s.profile for s in steps if s.profile is not None}
    kernels: list[list[Kernel]] = [[] for _ in profiles]
    for step in steps:
        if is_launch(step.kernel.kind):
            own = step.profile if step.program is None else of_program.get(step.program)
            kernels[own or 0].append(step.kernel)
    for name, found, sizes in zip(profiles, kernels, memory, strict=True):
        if not found or len(sizes) != 2:
            raise ExportError(
                f"{stage}: TensorRT must list the kernels of profile '{name}' and the memory they work in, got "
                f"{len(found)} kernels and {len(sizes)} of 2 sizes; this TensorRT's messages are not those of 1.7"
            )
    return {
        name: ProfileKernels(
            scratch_bytes=sizes["Max Scratch Memory"],
            activation_bytes=sizes["Total Activation Memory"],
            kernels=tuple(found),
        )
        for name, found, sizes in zip(profiles, kernels, memory, strict=True)
    }


def _read_step(found: re.Match[str]) -> _Step:
    name, kind, rest = found.groups()
    inputs, _, rest = rest.partition("Outputs: [")
    # constants are listed between inputs and outputs
    inputs = inputs.partition("Constants: [")[0]
    outputs, _, rest = rest.partition("}]")
    tactic = _TACTIC.search(rest)
    program = _PROGRAM.search(name)
    said = _PROFILE.search(found[0])
    return _Step(
        Kernel(
            name=_PROFILE.sub("", name),
            kind=kind,
            inputs=_tensors(inputs),
            outputs=_tensors(outputs),
            tactic=tactic[1] if tactic else "",
            nodes=tuple(dict.fromkeys(_NODE.findall(rest))),
        ),
        program[1] if program else None,
        int(said[1]) if said else None,
    )


def _tensors(text: str) -> tuple[KernelTensor, ...]:
    return tuple(
        KernelTensor(
            _PROFILE.sub("", found["name"]),
            _DTYPES.get(found["dtype"].lower(), found["dtype"].lower()),
            _numbers(found["shape"]),
            _numbers(found["strides"]),
        )
        for found in _TENSOR.finditer(text)
    )


def _numbers(listed: str | None) -> tuple[int, ...]:
    return tuple(map(int, listed.split(","))) if listed else ()
