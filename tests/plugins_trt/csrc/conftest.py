"""The plugin library, and a process that runs its host code against a driver that only records."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import MissingDependencyError
from longllava_trt.plugins_trt.library.aot import compile_images
from longllava_trt.plugins_trt.library.build import PluginLibrary, build_library
from longllava_trt.plugins_trt.library.codegen import KernelImage
from longllava_trt.plugins_trt.plugin_formats import FORMS, Form, parse_axis

_DATA = Path(__file__).parents[1] / "data"
_TYPES = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "packed": 4, "float32": 0, "int32": 5}
_ITEM_BYTES = (4, 2, 2, 1, 1, 4)
HEADS = ((48, 3), (128, 4))
"""LongLLaVA's, and some that are no powers of two: head_dim, and heads of a group."""
_FIRST_ADDRESS = 0x7F00_0000_0000


@dataclass(kw_only=True)
class HostCall:
    """One call of the C interface, with tensors at made-up addresses; change it to break it."""

    op_type: str
    attributes: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    workspace: int | None = 0x5000_0000_0000
    stream: int = 0xABC0
    pointers: dict[str, int] = field(default_factory=dict)


def _host_call(
    op_type: str, dtype: str, sizes: dict[str, int], *, variant: str = "", attributes: str = ""
) -> HostCall:
    """Return a call with the shapes that a form has for these sizes."""
    form = _find_form(op_type, variant)
    call = HostCall(op_type=op_type, attributes=attributes, inputs=[], outputs=[])
    address = _FIRST_ADDRESS
    for values, tensors in ((form.inputs, call.inputs), (form.outputs, call.outputs)):
        for value in values:
            dims = [_evaluate(axis, sizes) for axis in value.axes]
            type_ = _TYPES[dtype if value.dtype == "T" else value.dtype]
            tensors.append({"type": type_, "dims": dims, "data": address})
            call.pointers[value.name] = address
            size = _ITEM_BYTES[type_]
            for dim in dims:
                size *= dim
            address += -(-size // 256) * 256
    return call


def _find_form(op_type: str, variant: str) -> Form:
    return next(f for f in FORMS if (f.op_type, f.variant) == (op_type, variant))


def _evaluate(axis: str | int, sizes: dict[str, int]) -> int:
    parsed = parse_axis(axis)
    if parsed.symbol is None:
        return parsed.offset
    return -(-parsed.scale * sizes[parsed.symbol] // parsed.divisor) + parsed.offset


class Host:
    """Talks to `record_launches.py`."""

    def __init__(self, library: Path, driver: Path | None) -> None:
        script = str(_DATA / "record_launches.py")
        command = [sys.executable, script, str(library), *([str(driver)] if driver else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self,
        call: HostCall,
        *,
        counts: dict[str, int] | None = None,
        arch: tuple[int, int] = (8, 0),
        multiprocessors: int = 108,
        context: int = 0x1000,
        failing: str = "",
        code: int = 700,
    ) -> Any:
        """Run one call and return what the process says of it."""
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "op_type": call.op_type,
            "attributes": call.attributes,
            "inputs": call.inputs,
            "outputs": call.outputs,
            "workspace": call.workspace,
            "stream": call.stream,
            "configure": [*arch, multiprocessors, context, failing, code],
            "counts": counts or {},
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="session")
def plugin_library() -> PluginLibrary:
    """For an A100, every dtype and weight format; from the user's cache where it is there."""
    try:
        return build_library(archs=(80,), heads=HEADS)
    except MissingDependencyError as err:
        pytest.skip(f"the host code is untested: {err}")


@pytest.fixture(scope="session")
def kernel_images(
    plugin_library: PluginLibrary, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[KernelImage, int]]:
    """Triton's own record of every kernel, and the checksum of its code, by variant."""
    folder = tmp_path_factory.mktemp("images")
    images = compile_images(
        folder,
        archs=plugin_library.archs,
        dtypes=plugin_library.dtypes,
        weight_formats=("none", "int8", "int4"),
        heads=HEADS,
        triton_cache=plugin_library.path.parents[2] / "triton",
    )
    return {image.name: (image, _checksum(folder / f"{image.stem}.cubin")) for image in images}


def _checksum(cubin: Path) -> int:
    code = cubin.read_bytes()
    (section_headers,) = struct.unpack_from("<Q", code, 0x28)
    return zlib.adler32(code[:section_headers])


@pytest.fixture(scope="session")
def stand_in_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libcuda.so.1 that records launches."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the host code is untested: no C compiler for the stand-in driver")
    driver = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = _DATA / "stand_in_libcuda.c"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, str(source), "-o", str(driver)], check=True)
    return driver


@pytest.fixture(scope="session")
def host(plugin_library: PluginLibrary, stand_in_driver: Path) -> Iterator[Host]:
    running = Host(plugin_library.path, stand_in_driver)
    yield running
    running.close()


@pytest.fixture
def fresh_host(plugin_library: PluginLibrary, stand_in_driver: Path) -> Iterator[Host]:
    """A process that has launched nothing yet."""
    running = Host(plugin_library.path, stand_in_driver)
    yield running
    running.close()


@pytest.fixture
def driverless_host(plugin_library: PluginLibrary) -> Iterator[Host]:
    """A process without the stand-in."""
    running = Host(plugin_library.path, None)
    yield running
    running.close()


@pytest.fixture(scope="session")
def host_call() -> Callable[..., HostCall]:
    return _host_call
