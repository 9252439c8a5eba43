"""Make this machine's CPU kernels known to ONNX Runtime sessions."""

from __future__ import annotations

import logging
import signal
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from longllava_trt.core.errors import MissingDependencyError

if TYPE_CHECKING:
    from types import FrameType

    import onnxruntime

    from longllava_trt.plugins_trt.cpu.ort_custom_op import NativeOperator

__all__ = ["register_kernels"]

logger = logging.getLogger(__name__)

_PATIENCE_S = 3.0
_lock = threading.Lock()
_registered: tuple[NativeOperator, ...] = ()
_prepared: weakref.WeakSet[onnxruntime.SessionOptions] = weakref.WeakSet()


def register_kernels(options: onnxruntime.SessionOptions) -> None:
    """Let sessions made with these options run a graph that `lower_for_cpu` changed.

    Operators are registered once per process, their library once per options object; both
    may be asked for from any thread and any number of times. Kernels run on the session's own threads.

    Args:
        options: Of the sessions; changed in place.

    Raises:
        MissingDependencyError: If onnxruntime-extensions or Numba is not installed.
    """
    global _registered  # noqa: PLW0603 - the registry that keeps their addresses is the process's too
    try:
        from onnxruntime_extensions import get_library_path

        with _told_if_slow(_PATIENCE_S), _interruptible():
            from longllava_trt.plugins_trt.cpu.operators import native_operators
    except ImportError as err:
        raise MissingDependencyError(
            f"register_kernels: '{err.name}' is not installed; "
            "install longllava-trt with its core dependencies"
        ) from err
    with _lock:
        if not _registered:
            _registered = native_operators()
            for operator in _registered:
                operator.register(get_library_path())
        if options not in _prepared:
            # ONNX Runtime refuses, at session creation, options that name one library twice
            options.register_custom_ops_library(get_library_path())
            _prepared.add(options)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt end a block that compiles.

    One that comes while LLVM calls back is dropped by ctypes; the compiler goes on, or fails with an error of its own.
    """
    before, is_interrupted = signal.getsignal(signal.SIGINT), False
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        try:
            before(number, frame)
        except KeyboardInterrupt:
            is_interrupted = True
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except RuntimeError as err:
        if is_interrupted:
            raise KeyboardInterrupt from err
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if is_interrupted:
        raise KeyboardInterrupt


@contextmanager
def _told_if_slow(patience_s: float) -> Iterator[None]:
    """Say what is going on if a block takes longer."""
    text = "compiling the CPU kernels, once on this machine; it takes half a minute"
    timer = threading.Timer(patience_s, logger.info, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
