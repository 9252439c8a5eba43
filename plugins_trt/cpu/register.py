"""Make this machine's CPU kernels known to ONNX Runtime sessions."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from longllava_trt.errors import MissingDependencyError
from plugins_trt.cpu.lower import SCAN_OP_TYPE
from plugins_trt.cpu.native_op import NativeOperator
from plugins_trt.spec import SELECTIVE_SCAN

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["register_kernels"]

_lock = threading.Lock()
_scan: NativeOperator | None = None
_prepared: weakref.WeakSet[onnxruntime.SessionOptions] = weakref.WeakSet()


def register_kernels(
    options: onnxruntime.SessionOptions, *, num_threads: int | None = None
) -> None:
    """Let sessions made with these options run a graph that `lower_for_cpu` changed.

    The operator is registered once per process, the library once per options object; both
    may be asked for from any thread and any number of times.

    Args:
        options: Of the sessions; changed in place.
        num_threads: Threads of the kernels, for every session that the calling thread runs; by default one a core.

    Raises:
        MissingDependencyError: If onnxruntime-extensions or Numba is not installed.
    """
    global _scan  # noqa: PLW0603 - the registry that keeps its address is the process's too
    try:
        import numba
        from onnxruntime_extensions import get_library_path

        from plugins_trt.cpu.selective_scan import selective_scan_into
    except ImportError as err:
        raise MissingDependencyError(
            f"register_kernels: '{err.name}' is not installed; "
            "install longllava-trt with its core dependencies"
        ) from err
    if num_threads is not None:
        # Numba sets its names of settings when it is imported, and refuses more threads than it launches
        most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        numba.set_num_threads(min(num_threads, most))
    with _lock:
        if _scan is None:
            _scan = NativeOperator(
                SCAN_OP_TYPE,
                selective_scan_into,
                num_inputs=len(SELECTIVE_SCAN.inputs),
                outputs_like=tuple(map(SELECTIVE_SCAN.input_names.index, ("u", "state"))),
            )
            _scan.register(get_library_path())
        if options not in _prepared:
            # ONNX Runtime refuses, at session creation, options that name one library twice
            options.register_custom_ops_library(get_library_path())
            _prepared.add(options)
