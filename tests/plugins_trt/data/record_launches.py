"""Calls the C interface as it is told on stdin, a line of JSON a call, and prints what was launched.

A process of its own, because the stand-in must not replace the driver of anything else. Imports nothing of
this project, so that what it prints is the library's doing alone.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("max_shared", ctypes.c_uint32),
        ("stream", ctypes.c_uint64),
        ("context", ctypes.c_uint64),
        ("is_binary", ctypes.c_uint32),
        ("checksum", ctypes.c_uint32),
        ("module_loads", ctypes.c_uint32),
        ("arguments", ctypes.c_uint64 * 24),
    )


def _tensors(tensors: list[dict[str, Any]]) -> ctypes.Array[_Tensor]:
    array = (_Tensor * len(tensors))()
    for slot, tensor in zip(array, tensors, strict=True):
        dims = tensor["dims"]
        slot.type, slot.rank, slot.data = tensor["type"], len(dims), tensor["data"]
        slot.dims[: len(dims)] = dims
    return array


def _launches(driver: ctypes.CDLL) -> list[dict[str, Any]]:
    found = ctypes.POINTER(_Launch)()
    count = driver.stand_in_take(ctypes.byref(found))
    plain = [{name: getattr(found[i], name) for name, _ in _Launch._fields_} for i in range(count)]
    return [
        {
            name: v.decode() if isinstance(v, bytes) else list(v) if hasattr(v, "__len__") else v
            for name, v in launch.items()
        }
        for launch in plain
    ]


def _call(library: ctypes.CDLL, driver: ctypes.CDLL | None, request: dict[str, Any]) -> Any:
    inputs, outputs = _tensors(request["inputs"]), _tensors(request["outputs"])
    name, attributes = request["op_type"].encode(), request["attributes"].encode()
    needed = ctypes.c_uint64(0)
    sized = library.longllava_workspace_size(
        name, attributes, inputs, len(inputs), ctypes.byref(needed)
    )
    status = library.longllava_enqueue(
        name,
        attributes,
        inputs,
        len(inputs),
        outputs,
        len(outputs),
        ctypes.c_void_p(request["workspace"]),
        ctypes.c_void_p(request["stream"]),
    )
    return {
        "status": status,
        "sized": sized,
        "error": library.longllava_last_error().decode(),
        "workspace_bytes": needed.value,
        "launches": _launches(driver) if driver else [],
    }


def _main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.longllava_last_error.restype = ctypes.c_char_p
    driver = ctypes.CDLL(sys.argv[2]) if len(sys.argv) > 2 else None
    for line in sys.stdin:
        request = json.loads(line)
        if driver and "configure" in request:
            major, minor, multiprocessors, context, failing, code = request["configure"]
            driver.stand_in_configure(
                major, minor, multiprocessors, ctypes.c_uint64(context), failing.encode(), code
            )
            for index, (name, count) in enumerate(request["counts"].items()):
                driver.stand_in_count(index, name.encode(), count)
        sys.stdout.write(json.dumps(_call(library, driver, request)) + "\n")
        sys.stdout.flush()


_main()
