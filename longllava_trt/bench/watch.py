"""ONNX Runtime's own time in a call; the rest of the call is ours.

Only a benchmark loads its sessions through this; the usual path has nothing to measure and pays
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from longllava_trt.core.logs import ProgressEvent
from longllava_trt.runtime.backends.ort.backend import OrtBackend

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.ort.session import OnnxSession
    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["RuntimeWatch", "WatchedSession"]


class RuntimeWatch:
    """Seconds of ONNX Runtime's calls.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds = 0.0
        """Time of the calls since the last `restart`."""

    @classmethod
    def over(cls, model: LongLLaVA) -> RuntimeWatch:
        """Return a watch over every stage that the model loads from now on in ONNX Runtime."""
        watch = cls()
        model.runner.backend = _WatchedBackend(model, watch)
        return watch

    def add(self, seconds: float) -> None:
        """Count one call."""
        self.seconds += seconds

    def restart(self, _event: ProgressEvent | None = None) -> None:
        """Forget all calls so far.

        As the progress callback of an answer, it leaves the decoding alone: the runner reports its
        last positions of the prompt before the first token is chosen, and reports nothing later. No
        clock of another module is compared.
        """
        self.seconds = 0.0


class WatchedSession:
    """An `onnxruntime.InferenceSession` whose calls are timed; otherwise the same.

    Args:
        session: The session.
        watch: Takes note of its calls.
    """

    def __init__(self, session: Any, watch: RuntimeWatch) -> None:
        self._watched, self._watch = session, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._watched, name)
        if not name.startswith("run"):
            return value
        timed = _timed(value, self._watch)
        # found at once from now on, without coming here
        setattr(self, name, timed)
        return timed


class _WatchedBackend(OrtBackend):
    """ONNX Runtime, watched."""

    def __init__(self, model: LongLLaVA, watch: RuntimeWatch) -> None:
        kernels, num_threads = model.options.kernels, model.options.num_threads
        super().__init__(model.bundle, model.manifest, kernels=kernels, num_threads=num_threads)
        self._watch = watch

    def load_stage(self, stage: str) -> OnnxSession:
        """Load a stage."""
        loaded = super().load_stage(stage)
        loaded.session = WatchedSession(loaded.session, self._watch)
        return loaded


def _timed(call: Callable[..., Any], watch: RuntimeWatch) -> Callable[..., Any]:
    @wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = watch.clock()
        try:
            return call(*args, **kwargs)
        finally:
            watch.add(watch.clock() - begin)

    return timed
