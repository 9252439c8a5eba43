"""A decode step as a CUDA graph: captured once, then launched as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from longllava_trt.runtime.backends.kernels.device import DeviceStream

__all__ = ["CapturedStep"]


class CapturedStep:
    """Captures a step; every kernel that it launches must have run before. What is captured is not run.

    Args:
        launch: Launches the step on a tensor of embeddings, and returns its logits.
        like: Embeddings of the step's shape.
        stream: Where.
        memory: A pool that graphs share, from `torch.cuda.graph_pool_handle`: only one may be in use at a time.
    """

    def __init__(
        self,
        launch: Callable[[torch.Tensor], torch.Tensor],
        like: torch.Tensor,
        *,
        stream: DeviceStream,
        memory: Any,
    ) -> None:
        self._inputs_embeds = torch.zeros_like(like)
        self._graph = torch.cuda.CUDAGraph()
        # only this thread's calls can break the capture: another may be encoding images
        with torch.cuda.graph(
            self._graph, pool=memory, stream=stream.cuda, capture_error_mode="thread_local"
        ):
            self._logits = launch(self._inputs_embeds)

    def __call__(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Launch the step; returns its logits, which the next launch overwrites."""
        self._inputs_embeds.copy_(inputs_embeds)
        self._graph.replay()
        return self._logits
