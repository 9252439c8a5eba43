"""Messages of TensorRT, kept for errors, and its progress, which is reported on.

The classes are made after TensorRT is imported, because they must derive from its classes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from longllava_trt.export.engine.kernels import tells_kernels
from longllava_trt.plugins_trt.registry import TensorRT

__all__ = ["MessageLog", "make_logger", "make_monitor"]

logger = logging.getLogger(__name__)

_KEPT = 6
_NOISE = ("catchCudaError", "End node", "Begin node")
"""Lines that TensorRT adds to any error without a GPU, because it asks the driver for details."""


class MessageLog(Protocol):
    """A TensorRT logger that remembers."""

    kernel_lines: list[str]
    """Lines about kernels, since they were last cleared."""

    def last_errors(self) -> str:
        """Return the last error lines joined, for the message of an exception; forget them."""
        ...


def make_logger(tensorrt: TensorRT) -> Any:
    """Return a `MessageLog` for TensorRT that writes to this module's logger.

    TensorRT's warnings matter only to developers, such as that a name in ONNX is long. So they are
    logged as information, and its information as debug records. Lines about kernels are kept.
    """
    trt = tensorrt.module
    severities = trt.ILogger.Severity
    levels = {severities.WARNING: logging.INFO, severities.INFO: logging.DEBUG}

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=_KEPT)
            self.kernel_lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {severities.ERROR, severities.INTERNAL_ERROR}:
                logger.debug("%s", message)
                if not any(noise in message for noise in _NOISE):
                    self._errors.append(" ".join(message.split()))
            elif severity in levels:
                logger.log(levels[severity], "%s", message)
            self.kernel_lines += [line for line in message.splitlines() if tells_kernels(line)]

        def last_errors(self) -> str:
            lines = " | ".join(self._errors)
            self._errors.clear()
            return lines or "TensorRT gave no reason"

    return Log()


def make_monitor(tensorrt: TensorRT, tell: Callable[[str], None]) -> Any:
    """Return a progress monitor that reports each phase of a build when it begins.

    After Ctrl-C its attribute `interrupted` is true, and the build has been cancelled.

    Args:
        tensorrt: TensorRT that has the interface.
        tell: Called with the name of the phase; from TensorRT's threads.
    """

    class Monitor(tensorrt.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False

        def phase_start(self, phase_name: str, *_: object) -> None:
            self._guarded(lambda: tell(phase_name.strip()))

        def step_complete(self, *_: object) -> bool:
            # a signal is handled in Python code only, and during a build only this code runs
            self._guarded(lambda: None)
            return not self.interrupted

        def phase_finish(self, *_: object) -> None:
            pass

        def _guarded(self, call: Callable[[], None]) -> None:
            # an exception must not pass through TensorRT's own frames
            try:
                call()
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()
